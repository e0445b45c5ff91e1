"""The gate between what a teacher wrote and the rows that are kept: every parsed row is accepted, or rejected with a
reason. Both generators use it, so that their counts mean the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from tunesmith.generating.examples import Example, ReplyStyle
from tunesmith.generating.parsing import Broken, Row
from tunesmith.generating.prompt_files import refusal_pattern
from tunesmith.protocols import GenerationContext
from tunesmith.types import Conversation, Excluded, Message, Split

_PLACEHOLDERS = frozenset({"...", "…", "input", "output", "<input>", "<output>", "string", "none", "null", "n/a"})


class Gate:
    """Judges rows in the order they are handed in. `accepted` holds the rows that went through.

    Reasons: empty, echo (input and output are the same), refusal, schema, duplicate, rouge_l, surplus (more rows than
    were asked for), and those of parsing.Broken.
    """

    def __init__(
        self, ctx: GenerationContext, examples: Sequence[Example], *, wanted: int, max_similarity: float, generator: str
    ) -> None:
        self.accepted: list[Example] = []
        self._ctx = ctx
        self._style = ReplyStyle(examples)
        self._wanted = wanted
        self._max_similarity = max_similarity
        self._source = f"{generator}:{ctx.client.identity}"
        self._texts: dict[int, str] = {}  # index in the novelty pool -> text, of the rows added here
        self._ids = {example.conversation.id for example in examples}
        schema = ctx.task.output_schema
        self._validator: Validator | None = _validator(schema) if schema is not None else None

    @property
    def missing(self) -> int:
        """Rows still wanted."""
        return self._wanted - len(self.accepted)

    def judge(
        self,
        pieces: Sequence[Row | Broken],
        *,
        asked_for: int,
        request: int,
        system_prompt: str | None,
        origin: str = "",
        split: Split | None = None,
        metadata: dict[str, Any],
    ) -> None:
        """Accept or reject every piece of one answer. origin "" = each row is its own."""
        num_rows = 0
        for number, piece in enumerate(pieces):
            where = f"request {request}, row {number}"
            if isinstance(piece, Broken):
                self._ctx.reject(Excluded(reason=piece.reason, detail=piece.detail, where=where, raw=piece.text))
                continue
            num_rows += 1
            asked = piece.input if isinstance(piece.input, str) else self._style.write(piece.input)
            example = self._conversation(
                _valid_unicode(asked).strip(), _valid_unicode(self._style.write(piece.output)).strip(), system_prompt,
                origin, split, {**metadata, "request": request},
            )  # fmt: skip
            verdict = self._verdict(example, surplus=self.missing <= 0 or num_rows > asked_for)
            if verdict is None:
                self._texts[self._ctx.novelty.add(example.input)] = example.input
                self._ids.add(example.conversation.id)
                self.accepted.append(example)
                self._ctx.accept(example.conversation)
            else:
                self._ctx.reject(
                    Excluded(reason=verdict[0], detail=verdict[1], where=where, conversation=example.conversation)
                )

    def _conversation(
        self, asked: str, answered: str, system_prompt: str | None, origin: str, split: Split | None, metadata: Any
    ) -> Example:
        messages = [Message(role="system", content=system_prompt)] if system_prompt else []
        messages += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
        return Example(
            asked,
            answered,
            Conversation(messages=messages, source=self._source, origin=origin, split=split, metadata=metadata),
        )

    def _verdict(self, example: Example, *, surplus: bool) -> tuple[str, str] | None:
        for side, text in (("input", example.input), ("output", example.output)):
            if not text or text.lower().strip(" .\"'") in _PLACEHOLDERS or not text.strip(" ."):
                return "empty", f"the {side} is {text!r}"
        if " ".join(example.input.lower().split()) == " ".join(example.output.lower().split()):
            return "echo", "input and output are the same"
        refusal = refusal_pattern().search(example.output) or refusal_pattern().search(example.input)
        if refusal:
            return "refusal", f"says {refusal.group()!r}"
        if self._validator is not None and (fault := _schema_fault(self._validator, example.output)):
            return "schema", fault
        if example.conversation.id in self._ids:
            return "duplicate", "the same exchange exists already"
        similarity, index = self._ctx.novelty.nearest(example.input)
        if similarity > self._max_similarity:
            near = self._texts.get(index)
            what = f"generated before: {near[:200]!r}" if near is not None else f"text {index} of the seeds"
            return "rouge_l", f"ROUGE-L F1 {similarity:.3f} > {self._max_similarity:g} with {what}"
        if surplus:
            return "surplus", "a good row beyond those that were asked for"
        return None


def _validator(schema: dict[str, Any]) -> Validator:
    return validator_for(schema, default=Draft202012Validator)(schema)


def _schema_fault(validator: Validator, text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"the output is no JSON: {error}"
    fault = next(iter(validator.iter_errors(value)), None)
    return None if fault is None else f"{fault.json_path}: {fault.message}"[:300]


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
