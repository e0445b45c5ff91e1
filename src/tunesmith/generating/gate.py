"""The gate between what a teacher wrote and the rows that are kept: every parsed row is accepted, or rejected with a
reason. Every generator uses it, so that their counts mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonschema.protocols import Validator

from tunesmith.generating.constraints import schema_fault, validator_of
from tunesmith.generating.examples import Example, ReplyStyle
from tunesmith.generating.parsing import Broken, Row
from tunesmith.generating.prompt_files import refusal_pattern
from tunesmith.protocols import GenerationContext
from tunesmith.types import Conversation, Excluded, Message, Split

_PLACEHOLDERS = frozenset({"...", "…", "input", "output", "<input>", "<output>", "string", "none", "null", "n/a"})


@dataclass(frozen=True)
class Frame:
    """What the rows of one answer have in common. origin "" = each row is its own."""

    system_prompt: str | None = None
    origin: str = ""
    split: Split | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None  # of what the rows were made from, beside the seeds that metadata names


@dataclass(frozen=True)
class Draft:
    """A row of any number of turns, without its system message. `fault` is why its generator would not keep it."""

    messages: tuple[Message, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fault: tuple[str, str] | None = None  # reason, detail


Piece = Row | Draft | Broken


class Gate:
    """Judges rows in the order they are handed in. `accepted` holds the rows that went through.

    Reasons: empty, echo (input and output are the same), refusal, schema, duplicate, rouge_l, surplus (more rows than
    were asked for), those of parsing.Broken, and those a generator gives in Draft.fault.
    compare: False where prompts are given and not made, so that nearness to earlier ones is no fault of the teacher.
    needs_reply: False where rows are prompts alone.
    """

    def __init__(
        self,
        ctx: GenerationContext,
        examples: Sequence[Example],
        *,
        wanted: int,
        max_similarity: float,
        generator: str,
        compare: bool = True,
        needs_reply: bool = True,
    ) -> None:
        self.accepted: list[Example] = []
        self._ctx = ctx
        self._style = ReplyStyle(examples)
        self._wanted = wanted
        self._max_similarity = max_similarity
        self._compare = compare
        self._needs_reply = needs_reply
        self._source = f"{generator}:{ctx.client.identity}"
        self._texts: dict[int, str] = {}  # index in the novelty pool -> text, of the rows added here
        self._ids = {example.conversation.id for example in examples}
        schema = ctx.task.output_schema
        self._validator: Validator | None = validator_of(schema) if schema is not None else None

    @property
    def missing(self) -> int:
        """Rows still wanted."""
        return self._wanted - len(self.accepted)

    def judge(
        self,
        pieces: Sequence[Piece],
        *,
        asked_for: int,
        request: int,
        system_prompt: str | None,
        origin: str = "",
        split: Split | None = None,
        metadata: Mapping[str, Any],
    ) -> None:
        """Accept or reject every piece of one answer. origin "" = each row is its own."""
        self.judge_framed(pieces, Frame(system_prompt, origin, split, metadata), asked_for=asked_for, request=request)

    def judge_framed(self, pieces: Sequence[Piece], frame: Frame, *, asked_for: int, request: int) -> None:
        """judge() with what the rows have in common in one value."""
        num_rows = 0
        for number, piece in enumerate(pieces):
            where = f"request {request}, row {number}"
            if isinstance(piece, Broken):
                self._ctx.reject(Excluded(reason=piece.reason, detail=piece.detail, where=where, raw=piece.text))
                continue
            draft = self._draft(piece) if isinstance(piece, Row) else piece
            example = self._example(draft, frame, request)
            num_rows += draft.fault is None
            verdict = draft.fault or self._verdict(example, surplus=self.missing <= 0 or num_rows > asked_for)
            if verdict is None:
                self._texts[self._ctx.novelty.add(example.input)] = example.input
                self._ids.add(example.conversation.id)
                self.accepted.append(example)
                self._ctx.accept(example.conversation)
            else:
                self._ctx.reject(
                    Excluded(reason=verdict[0], detail=verdict[1], where=where, conversation=example.conversation)
                )

    def _draft(self, row: Row) -> Draft:
        asked = row.input if isinstance(row.input, str) else self._style.write(row.input)
        answered = self._style.write(row.output)
        return Draft((Message(role="user", content=asked), Message(role="assistant", content=answered)))

    def _example(self, draft: Draft, frame: Frame, request: int) -> Example:
        """`input` is everything the user says, `output` the last reply."""
        messages = [Message(role="system", content=frame.system_prompt)] if frame.system_prompt else []
        turns = [turn.model_copy(update={"content": _valid_unicode(turn.content).strip()}) for turn in draft.messages]
        conversation = Conversation(
            messages=messages + turns,
            source=self._source,
            origin=frame.origin,
            split=frame.split,
            licence=frame.licence,
            metadata={**frame.metadata, **draft.metadata, "request": request},
        )
        asked = "\n".join(turn.content for turn in turns if turn.role == "user")
        return Example(asked, turns[-1].content if turns and turns[-1].role == "assistant" else "", conversation)

    def _verdict(self, example: Example, *, surplus: bool) -> tuple[str, str] | None:
        sides = (("input", example.input), ("output", example.output))
        for side, text in sides if self._needs_reply else sides[:1]:
            if not text.strip() or text.lower().strip(" .\"'") in _PLACEHOLDERS or not text.strip(" ."):
                return "empty", f"the {side} is {text!r}"
        if " ".join(example.input.lower().split()) == " ".join(example.output.lower().split()):
            return "echo", "input and output are the same"
        refusal = refusal_pattern().search(example.output) or refusal_pattern().search(example.input)
        if refusal:
            return "refusal", f"says {refusal.group()!r}"
        if (
            self._needs_reply
            and self._validator is not None
            and (fault := schema_fault(self._validator, example.output))
        ):
            return "schema", fault
        if example.conversation.id in self._ids:
            return "duplicate", "the same exchange exists already"
        above = self._ctx.novelty.nearest_above(example.input, self._max_similarity) if self._compare else None
        if above is not None:
            similarity, index = above
            near = self._texts.get(index)
            what = f"generated before: {near[:200]!r}" if near is not None else f"text {index} of the seeds"
            return "rouge_l", f"ROUGE-L F1 {similarity:.3f} > {self._max_similarity:g} with {what}"
        if surplus:
            return "surplus", "a good row beyond those that were asked for"
        return None


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
