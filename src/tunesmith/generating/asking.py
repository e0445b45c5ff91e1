"""How every generator asks: requests that are a function of their number and of nothing that timing can change."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tunesmith.generating.constraints import Schema, is_constrained, schema_fault, validator_of
from tunesmith.generating.parsing import Broken, Row, parse_rows, without_thoughts
from tunesmith.generating.prompt_files import PromptFile, load_prompt
from tunesmith.protocols import GenerationContext, TeacherClient
from tunesmith.recipe import Generate
from tunesmith.types import Completion, Message, SamplingParams, Task, TeacherRequest

T = TypeVar("T")
_Piece = TypeVar("_Piece", covariant=True)


class Read(Protocol[_Piece]):
    """Takes an answer apart. cut: it ended because of its length."""

    def __call__(self, text: str, *, cut: bool) -> Sequence[_Piece | Broken]: ...


class TeacherFailed(Exception):
    """One request of a chain failed for good. Never leaves this package: the item it belongs to counts as failed."""


@dataclass(frozen=True)
class Pen:
    """What every request of one run has in common."""

    options: Generate
    task: Task
    rng_seed: int
    prompt: PromptFile
    client: TeacherClient

    @classmethod
    def of(cls, options: Generate, ctx: GenerationContext, prompt: str) -> Pen:
        """With the prompt file of that name in the recipe's language."""
        return cls(options, ctx.task, ctx.rng_seed, load_prompt(prompt, options.language), ctx.client)

    def rng(self, number: int | str, purpose: str) -> random.Random:
        """Randomness of one item for one purpose."""
        return rng_of(self.rng_seed, number, purpose)

    def request(
        self,
        section: str,
        values: Mapping[str, object],
        number: int,
        *,
        system: str = "system",
        temperature: float | None = None,
        schema: Schema | None = None,
        **sampling: Any,
    ) -> TeacherRequest:
        """Request `number`, made from two sections of the prompt file: one for the system message, one for the user's.
        `schema` counts where answers are constrained."""
        messages = (
            Message(role="system", content=self.fill(system, values)),
            Message(role="user", content=self.fill(section, values)),
        )
        return self.request_of(messages, number, temperature=temperature, schema=schema, **sampling)

    def fill(self, section: str, values: Mapping[str, object]) -> str:
        """A section with the task's own slots filled too."""
        shared = {name: value for name, value in self._shared().items() if name in self.prompt.slots}
        return self.prompt.fill(section, shared | dict(values))

    def request_of(
        self,
        messages: tuple[Message, ...],
        number: int,
        *,
        temperature: float | None = None,
        schema: Schema | None = None,
        **sampling: Any,
    ) -> TeacherRequest:
        """Request `number` with messages of its own."""
        chosen = {
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature if temperature is None else temperature,
            "top_p": self.options.top_p,
            "rng_seed": self.rng(number, "sampling").getrandbits(31),
            "json_schema": schema if schema is not None and is_constrained(self.options) else None,
        }
        return TeacherRequest(messages=messages, sampling=SamplingParams(**(chosen | sampling)), sample_index=number)

    def reply_request(self, turns: Sequence[Message], system: str | None, number: int) -> TeacherRequest:
        """The talk so far, to be answered as the assistant: greedily, under its system message, in the task's schema."""
        first = (Message(role="system", content=system),) if system else ()
        return self.request_of((*first, *turns), number, temperature=0.0, schema=self.task.output_schema)

    async def ask(self, request: TeacherRequest) -> Completion:
        """The answer. Raises TeacherFailed where there is none."""
        completion = await self.client.ask(request)
        if completion.finish_reason == "error":
            raise TeacherFailed(completion.error or "the teacher failed without a reason")
        return completion

    async def ask_form(
        self, request: TeacherRequest, read: Read[T], why_not: Callable[[T], str | None] = lambda piece: None
    ) -> tuple[list[T | Broken], Completion]:
        """The pieces that `read` finds in the answer, and the answer.

        Where not one of them is of use (all are Broken, or have a reason in `why_not`), the teacher is told what is wrong
        and answers once more: then the pieces are the first answer's, as Broken, and those of the second. An answer with
        one good piece is taken as it is. Raises TeacherFailed where there is no answer.
        """

        def pieces_of(answer: Completion) -> Sequence[T | Broken]:
            return read(answer.text, cut=answer.finish_reason == "length")

        def useless(answer: Completion) -> list[Broken]:
            pieces = pieces_of(answer)
            broken = [each for piece in pieces if (each := _as_broken(piece, why_not)) is not None]
            return broken if len(broken) == len(pieces) else []

        def fault(answer: Completion) -> str | None:
            broken = useless(answer)
            prompt = load_prompt("repair", self.options.language)
            return prompt.fill("again", {"fault": broken[0].detail}) if broken else None

        if not self.options.repair:
            only = await self.ask(request)
            return list(pieces_of(only)), only
        first, *others = await self.client.ask_repaired(request, fault)
        if first.finish_reason == "error":
            raise TeacherFailed(first.error or "the teacher failed without a reason")
        if not others or others[-1].finish_reason == "error":  # no second answer: the first stands
            return list(pieces_of(first)), first
        return [*useless(first), *pieces_of(others[-1])], others[-1]

    async def ask_rows(self, request: TeacherRequest) -> tuple[list[Row | Broken], Completion]:
        """ask_form() for rows of input and output. Outputs that break the task's schema are of no use."""
        validator = validator_of(self.task.output_schema) if self.task.output_schema is not None else None

        def why_not(row: Row) -> str | None:
            text = row.output if isinstance(row.output, str) else json.dumps(row.output, ensure_ascii=False)
            return schema_fault(validator, text) if validator is not None else None

        return await self.ask_form(request, parse_rows, why_not)

    async def reply(self, turns: Sequence[Message], system: str | None, number: int) -> Completion:
        """The answer to reply_request(). One that breaks the task's schema is asked for once more."""
        request = self.reply_request(turns, system, number)
        if self.task.output_schema is None:
            return await self.ask(request)
        validator = validator_of(self.task.output_schema)

        def read(text: str, *, cut: bool) -> Sequence[str | Broken]:
            fault = schema_fault(validator, without_thoughts(text))
            return [text if fault is None else Broken("schema", fault, text)]

        return (await self.ask_form(request, read))[1]

    def _shared(self) -> dict[str, object]:
        schema = self.task.output_schema
        return {
            "task": self.task.description,
            "system_prompt": self.task.system_prompt,
            "schema": json.dumps(schema, ensure_ascii=False) if schema is not None else None,
        }


def rng_of(rng_seed: int, number: int | str, purpose: str) -> random.Random:
    """A string is hashed with SHA-512, so the draws are the same everywhere."""
    return random.Random(f"{rng_seed}/{number}/{purpose}")


def _as_broken(piece: T | Broken, why_not: Callable[[T], str | None]) -> Broken | None:
    if isinstance(piece, Broken):
        return piece
    fault = why_not(piece)
    return None if fault is None else Broken("schema", fault, json.dumps(vars(piece), ensure_ascii=False))
