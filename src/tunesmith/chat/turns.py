"""Where each assistant turn starts and ends in a rendered conversation, in characters.

A turn starts where the generation prompt ends: everything after it, up to and including the stop string, is what the
model writes (a space or an empty thought that the template puts before the text included). The last turn's start comes
from rendering the prompt itself; earlier ones repeat the text between a message and that start, which makes the whole
linear in turns. Where that text is not found again, or the template treats earlier turns differently, the prompt before
that turn is rendered too. Knows nothing of token ids.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tunesmith.chat.template import ChatTemplate, Located
from tunesmith.errors import DataError
from tunesmith.types import Message


@dataclass(frozen=True)
class Turn:
    """Characters [start, end) that the model writes as message `message`; the last ones are the stop string."""

    message: int
    start: int
    end: int


def assistant_indices(messages: Sequence[Message]) -> list[int]:
    """Indices of the assistant's messages."""
    return [index for index, message in enumerate(messages) if message.role == "assistant"]


def turn_starts(
    template: ChatTemplate, messages: Sequence[Message], located: Located, *, is_prompt: bool, prefix_stable: bool
) -> dict[int, int]:
    """Message index -> where its turn starts, for every assistant message whose prompt the text begins with.

    located: the messages rendered with a generation prompt at the end (is_prompt) or without.
    """
    turns = assistant_indices(messages)
    starts: dict[int, int] = {}
    if is_prompt:
        anchor, prompt = len(messages), located.text
    elif turns:
        anchor = turns.pop()
        prompt = _prompt(template, messages, anchor)
        if prompt is None or not located.text.startswith(prompt):
            prompt = None
        else:
            starts[anchor] = len(prompt)
    else:
        return starts
    header = _header(messages, located, anchor, prompt) if prefix_stable else None
    for turn in turns:
        before = _end_before(messages, located, turn)
        alike = turn > 0 and messages[turn - 1].role == messages[anchor - 1].role
        if header is not None and alike and before is not None and located.text.startswith(header, before):
            starts[turn] = before + len(header)
            continue
        prompt = _prompt(template, messages, turn)
        if prompt is not None and located.text.startswith(prompt):
            starts[turn] = len(prompt)
    return starts


def find_turns(
    located: Located, wanted: Sequence[int], starts: dict[int, int], stops: re.Pattern[str]
) -> tuple[Turn, ...]:
    """The turns of the wanted assistant messages. `stops` matches the strings that end a turn.

    Raises DataError where the text before a turn is not what the model would be prompted with, or no stop follows.
    """
    span_starts = [span.start for span in located.spans]
    turn_starts_in_order = sorted(starts.values())
    turns: list[Turn] = []
    for message in wanted:
        if message not in starts:
            raise DataError(
                f"the chat template does not write the text before message {message} as it writes the prompt for it, "
                "so the model would learn a turn it is never asked for",
                hint="a conversation needs a user turn before an assistant turn; where the template changes earlier "
                "turns, set `tokenize.supervise: last_turn`",
            )
        start = starts[message]
        after = max(start, located.ends.get(message, start))
        bound = len(located.text)  # the stop comes before anything of a later message
        for place in range(bisect_left(span_starts, after), len(span_starts)):
            if located.spans[place].message != message:
                bound = span_starts[place]
                break
        later = bisect_right(turn_starts_in_order, start)
        if later < len(turn_starts_in_order):
            bound = min(bound, turn_starts_in_order[later])
        found = stops.search(located.text, after, bound)
        if found is None:
            raise DataError(
                f"the chat template ends message {message} without a stop token ({stops.pattern}), so the model would "
                "not learn to stop",
                hint="set `tokenize.supervise: last_turn`, or choose another template with `tokenize.chat_template`",
            )
        turns.append(Turn(message, start, found.end()))
    return tuple(turns)


def plain_ranges(
    messages: Sequence[Message], located: Located, starts: dict[int, int], suspicious: Collection[int]
) -> list[tuple[int, int]]:
    """Ranges of text that came from messages, in order and disjoint: control strings in them were typed by somebody.

    suspicious: messages that hold such a string. Raises DataError where it is not known where one of them stands.
    """
    ranges = [(span.start, span.end) for span in located.spans]
    whole = {span.message: span.end for span in located.spans}
    for message in suspicious:
        end = located.ends.get(message)
        if end is not None and whole.get(message, -1) >= end:
            continue
        if end is None or message not in starts:
            raise DataError(
                f"message {message} ({messages[message].role}) holds a control string, and the chat template changes "
                "the text so that it cannot be told from the template's own",
                hint="take the string out of the row, or choose another template with `tokenize.chat_template`",
            )
        ranges = [(a, b) for a, b in ranges if b <= starts[message] or a >= end]
        ranges.append((starts[message], end))
    return sorted(ranges)


def _prompt(template: ChatTemplate, messages: Sequence[Message], turn: int) -> str | None:
    try:
        return template.render(messages[:turn], add_generation_prompt=True) if turn > 0 else None
    except DataError:  # a template may refuse a beginning of a conversation it accepts as a whole
        return None


def _header(messages: Sequence[Message], located: Located, anchor: int, prompt: str | None) -> str | None:
    """The text between the message before the anchor and the anchor's start."""
    end = _end_before(messages, located, anchor)
    return prompt[end:] if prompt is not None and end is not None and end <= len(prompt) else None


def _end_before(messages: Sequence[Message], located: Located, turn: int) -> int | None:
    """Where the text of the message before ends; None where that is not certain to the character."""
    if turn == 0 or not located.exact:
        return None
    before = messages[turn - 1]
    if before.role not in ("user", "tool") or before.content != before.content.rstrip():
        return None
    return located.ends.get(turn - 1)
