"""How every generator asks: requests that are a function of their number and of nothing that timing can change."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.generating.constraints import Schema, is_constrained
from tunesmith.generating.prompt_files import PromptFile, load_prompt
from tunesmith.protocols import GenerationContext, TeacherClient
from tunesmith.recipe import Generate
from tunesmith.types import Completion, Message, SamplingParams, Task, TeacherRequest


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
