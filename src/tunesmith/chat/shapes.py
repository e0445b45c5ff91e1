"""What is the same in all conversations with the same roles in the same order: the template's text, its control tokens, where turns
begin and end.

A template that looks inside no message (tracing.py) writes the same text around all of them, so it is rendered once for each order of
roles, with stand-ins, and not for every conversation. What is found is what turns.py finds in each rendered text; where that is not
certain from the stand-ins alone, there is no shape. Places are (literal, bytes from its begin). Knows nothing of a tokenizer's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.chat.tracing import Skeleton, Tracer
from tunesmith.types import Message

_MOST_SHAPES = 4096  # then they are made anew
_MOST_MESSAGES = 200  # of a shape: every turn's prompt is traced, which takes the square of them
_FOLLOWED = ("user", "tool")  # roles whose text stands right before a turn; as in turns.py


@dataclass(frozen=True)
class Shape:
    """One order of n roles. Literal m stands before the content of message m, literal n at the end.

    segments: what the text is cut into at control tokens and before turns, of which one begins at each place; segment_ids: the control
    token that a segment is, or -1 for text. turns: of each assistant message, where it begins (in literal m) and ends (in m + 1).
    """

    literals: tuple[bytes, ...]  # n + 1
    sizes: NDArray[np.int64]  # (n + 1,) bytes of each literal
    trims: tuple[bool, ...]  # n; the white space at the ends of a content is not written
    segment_literals: NDArray[np.int64]  # (S,)
    segment_offsets: NDArray[np.int64]  # (S,)
    segment_ids: NDArray[np.int32]  # (S,)
    answers: NDArray[np.int64]  # (A,) assistant messages
    turn_starts: NDArray[np.int64]  # (A,) bytes
    turn_ends: NDArray[np.int64]  # (A,)


class Shapes:
    """The shapes of one template. control: ids by string, -1 where it changes what stands around it. stops: matches the strings that
    end a turn."""

    def __init__(
        self, tracer: Tracer, control: Mapping[str, int], pattern: re.Pattern[str], stops: re.Pattern[str]
    ) -> None:
        self._tracer, self._control, self._pattern, self._stops = tracer, dict(control), pattern, stops
        self._beginnings = {text[:size] for text in control for size in range(1, len(text))}
        self._ends = {text[size:] for text in control for size in range(1, len(text))}
        self._longest = max(map(len, control), default=0)
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self._prompts: dict[tuple[str, ...], Skeleton | None] = {}

    def of(self, messages: Sequence[Message]) -> Shape | None:
        """The shape of these messages; None where each text has to be looked at."""
        roles = tuple([message.role for message in messages])
        if roles not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes, self._prompts = {}, {}
            self._shapes[roles] = self._made(roles)
        return self._shapes[roles]

    def _made(self, roles: tuple[str, ...]) -> Shape | None:
        written = self._tracer.trace(roles, add_generation_prompt=False) if len(roles) <= _MOST_MESSAGES else None
        if written is None or [slot.message for slot in written.slots] != list(range(len(roles))):
            return None
        if "" in written.literals[1:-1] or any(map(self._may_join_control, written.literals)):
            return None
        answers = [index for index, role in enumerate(roles) if role == "assistant"]
        starts = self._turn_starts(roles, answers, written)
        ends = [self._stops.search(written.literals[answer + 1]) for answer in answers]
        if starts is None or None in ends:
            return None
        # A turn ends before the next one begins: in the literal behind its text, or not at all.
        next_starts = dict(zip(answers, starts, strict=True))
        stop_ends = [found.end() for found in ends if found]
        if any(end > next_starts.get(answer + 1, end) for answer, end in zip(answers, stop_ends, strict=True)):
            return None
        cut = self._cut_up(written.literals, next_starts)
        if cut is None:
            return None
        literals = written.literals
        return Shape(
            literals=tuple(each.encode() for each in literals),
            sizes=np.array([len(each.encode()) for each in literals], np.int64),
            trims=tuple(slot.trimmed for slot in written.slots),
            segment_literals=np.array([each[0] for each in cut], np.int64),
            segment_offsets=np.array([len(literals[at][:to].encode()) for at, to, _ in cut], np.int64),
            segment_ids=np.array([each[2] for each in cut], np.int32),
            answers=np.array(answers, np.int64),
            turn_starts=np.array([len(literals[m][:at].encode()) for m, at in next_starts.items()], np.int64),
            turn_ends=np.array(
                [len(literals[m + 1][:at].encode()) for m, at in zip(answers, stop_ends, strict=True)], np.int64
            ),
        )

    def _may_join_control(self, literal: str) -> bool:
        """Whether a text beside it can make a control string with it."""
        if literal and any(literal in text and literal != text for text in self._control):
            return True
        sizes = range(1, min(self._longest, len(literal) + 1))
        return any(literal[-size:] in self._beginnings or literal[:size] in self._ends for size in sizes)

    def _turn_starts(self, roles: tuple[str, ...], answers: Sequence[int], written: Skeleton) -> list[int] | None:
        """Where in the literal before its text each turn begins: where the prompt for it ends."""
        starts: list[int] = []
        headers: dict[str, str] = {}  # by the role before
        for answer in answers:
            if answer == 0:
                return None
            prompt = self._prompt(roles[:answer])
            if (
                prompt is None
                or prompt.slots != written.slots[:answer]
                or prompt.literals[:-1] != written.literals[:answer]
            ):
                return None
            header = prompt.literals[-1]
            if not written.literals[answer].startswith(header):
                return None
            before = roles[answer - 1]
            if before in _FOLLOWED and headers.setdefault(before, header) != header:
                return None
            starts.append(len(header))
        return starts

    def _prompt(self, roles: tuple[str, ...]) -> Skeleton | None:
        if roles not in self._prompts:
            self._prompts[roles] = self._tracer.trace(roles, add_generation_prompt=True)
        return self._prompts[roles]

    def _cut_up(self, literals: Sequence[str], starts: Mapping[int, int]) -> list[tuple[int, int, int]] | None:
        """(literal, place in it, control id or -1) of each segment; None where a turn begins inside a control string, or one changes its surroundings."""
        cut: list[tuple[int, int, int]] = [(0, 0, -1)]
        for number, literal in enumerate(literals):
            found = [
                (match.start(), match.end(), self._control[match.group()]) for match in self._pattern.finditer(literal)
            ]
            start = starts.get(number)
            if any(token < 0 or (start is not None and a < start < b) for a, b, token in found):
                return None
            if start is not None:
                found = sorted([*found, (start, start, -1)], key=lambda each: each[:2])
            for begin, end, token in found:
                if token >= 0:
                    cut.append((number, begin, token))
                cut.append((number, end, -1))
        return cut
