"""Answers to whole conversations without a socket: for the Python API and the terminal chat.

One interface over a model on this machine (llama.cpp) and a model behind an OpenAI-compatible endpoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from tunesmith.chat.conditions import with_condition
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.protocols import Chunk, EventSink, Teacher
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.server.opening import OpenedModel, open_model, require_gguf
from tunesmith.teachers.build import build_teacher
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest, Usage

CHAT_SLOTS = 4
CHAT_CONTEXT_LENGTH = 4096


class Answerer(Protocol):
    """Answers conversations."""

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> Completion: ...

    def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncIterator[Chunk]: ...

    async def close(self) -> None: ...


class LocalAnswerer:
    """A model in this process. Puts the task's system prompt before conversations that have none.

    condition: source class every answer is asked for under (C-RLFT); None = the template's own.
    """

    def __init__(
        self, model: OpenedModel, engine: LlamaCppEngine, system_prompt: str | None, condition: str | None = None
    ) -> None:
        self.model, self._condition = model, condition
        self._engine = engine
        self._system_prompt = system_prompt if system_prompt is not None else model.task.system_prompt

    async def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncIterator[Chunk]:
        """Pieces of the answer as they are written."""
        renderer = self.model.renderer
        asked = with_condition(messages, self._condition, template=renderer.template, where="condition")
        prompt = renderer.prompt(with_system(asked, self._system_prompt))
        async for chunk in self._engine.stream(prompt, sampling):
            yield chunk

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> Completion:
        """The whole answer."""
        text, last = "", Chunk()
        async for chunk in self.stream(messages, sampling):
            text += chunk.text
            last = chunk
        return Completion(
            text=text,
            finish_reason="length" if last.finish_reason == "length" else "stop",
            usage=Usage(prompt_tokens=last.prompt_tokens, completion_tokens=last.completion_tokens),
        )

    async def close(self) -> None:
        """Free the model."""
        await self._engine.stop()


class EndpointAnswerer:
    """A model behind an endpoint. Its answers arrive whole."""

    def __init__(self, teacher: Teacher, system_prompt: str | None) -> None:
        self._teacher = teacher
        self._system_prompt = system_prompt

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> Completion:
        """The whole answer."""
        asked = TeacherRequest(messages=tuple(with_system(messages, self._system_prompt)), sampling=sampling)
        return await self._teacher.complete(asked)

    async def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncIterator[Chunk]:
        """The answer as one piece."""
        completion = await self.answer(messages, sampling)
        yield Chunk(text=completion.text, finish_reason=completion.finish_reason)

    async def close(self) -> None:
        """Close the connections."""
        await self._teacher.aclose()


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The messages, with the system prompt in front where there is none of their own."""
    if system_prompt and not any(message.role == "system" for message in messages):
        return [Message(role="system", content=system_prompt), *messages]
    return list(messages)


async def open_answerer(
    reference: str, root: Path, events: EventSink, system_prompt: str | None, condition: str | None = None
) -> LocalAnswerer:
    """Open a run or a model in this process. RecipeError for a condition that its template does not write."""
    model = open_model(reference, root, events)
    with_condition((), condition, template=model.renderer.template, where="condition")
    engine = LlamaCppEngine(
        require_gguf(model),
        context_length=min(CHAT_CONTEXT_LENGTH, model.context_length),
        num_slots=CHAT_SLOTS,
        num_threads=None,
    )
    await engine.start()
    return LocalAnswerer(model, engine, system_prompt, condition)


async def open_endpoint(
    model: str, base_url: str, api_key_env: str | None, system_prompt: str | None
) -> EndpointAnswerer:
    """Use a model behind an OpenAI-compatible endpoint."""
    section = TeacherSection(model=model, base_url=base_url, api_key_env=api_key_env, price_usd_per_mtok=(0, 0))
    return EndpointAnswerer(build_teacher(section, where="Engine", runtime=Runtime(), files={}), system_prompt)
