"""A teacher in this process: any ServingEngine behind the Teacher protocol. Owns the translation and nothing else;
which engine, which model and which chat template is the caller's business."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing

from tunesmith.errors import EngineError
from tunesmith.protocols import Price, Prompt, ServingEngine, TokenLogprob
from tunesmith.types import Completion, FinishReason, Message, TeacherRequest, Usage

BuildPrompt = Callable[[Sequence[Message]], Prompt]
BuildPrefix = Callable[[Sequence[Message]], tuple[Prompt, tuple[str, ...]]]


class LocalTeacher:
    """Answers with an engine. The engine is started with the first request and stopped by `aclose`.

    `name` becomes part of the identity, so it should name the weights and not only the model.
    """

    def __init__(self, engine: ServingEngine, build_prompt: BuildPrompt, *, name: str, price: Price) -> None:
        self.identity = f"local:{name}"
        self.price = price
        self.concurrency = engine.num_slots
        self.build_prefix: BuildPrefix | None = (
            None  # for requests with prefix_only: the header of a user turn, its stops
        )
        self._engine = engine
        self._build_prompt = build_prompt
        self._start = asyncio.Lock()
        self._started = False

    async def complete(self, request: TeacherRequest) -> Completion:
        """One answer. An answer longer than the context that the prompt leaves free ends with finish_reason "length".
        Raises EngineError where the engine cannot start or has died; a refused request is an error completion."""
        await self._ensure_started()
        if request.prefix_only and self.build_prefix is None:
            return _failed("this teacher cannot continue the header of a user turn (prefix_only)")
        prompt, stop = self._prompt(request)
        room = self._engine.context_length - len(prompt.input_ids)
        if room < 1:
            return _failed(
                f"the prompt has {len(prompt.input_ids)} tokens and the teacher's context {self._engine.context_length}; "
                "raise `teacher.context_length` or show fewer examples"
            )
        limits = {"max_tokens": min(request.sampling.max_tokens, room), "stop": (*request.sampling.stop, *stop)}
        sampling = request.sampling.model_copy(update=limits)
        pieces: list[str] = []
        reason: FinishReason = "stop"
        usage = Usage()
        places: list[dict[str, float]] | None = None if sampling.top_logprobs is None else []
        stream = self._engine.stream(prompt, sampling, top_logprobs=sampling.top_logprobs)
        try:
            async with aclosing(stream) as chunks:  # pyright: ignore[reportArgumentType]
                async for chunk in chunks:
                    pieces.append(chunk.text)
                    if places is not None:
                        places += [_likeliest(entry) for entry in chunk.logprobs]
                    if chunk.finish_reason is not None:
                        reason = "length" if chunk.finish_reason == "length" else "stop"
                        usage = Usage(prompt_tokens=chunk.prompt_tokens, completion_tokens=chunk.completion_tokens)
        except EngineError as error:
            if not await self._engine.healthy():
                raise
            return _failed(str(error))
        cost = self.price.cost(usage.prompt_tokens, usage.completion_tokens)
        text = "".join(pieces)
        return Completion(text=text, finish_reason=reason, usage=usage, cost_usd=cost, top_logprobs=places)

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        """Exact."""
        return len(self._prompt(request)[0].input_ids)

    def _prompt(self, request: TeacherRequest) -> tuple[Prompt, tuple[str, ...]]:
        if request.prefix_only and self.build_prefix is not None:
            return self.build_prefix(request.messages)
        return self._build_prompt(request.messages), ()

    async def aclose(self) -> None:
        async with self._start:
            if self._started:
                self._started = False
                await self._engine.stop()

    async def _ensure_started(self) -> None:
        async with self._start:
            if not self._started:
                await self._engine.start()
                self._started = True


def _likeliest(entry: TokenLogprob) -> dict[str, float]:
    """Texts of the alternatives, the likeliest first; parts of characters share a text, and the first one stands for all."""
    found: dict[str, float] = {}
    for other in entry.top:
        if math.isfinite(other.logprob):
            found.setdefault(other.text, other.logprob)
    return found


def _failed(message: str) -> Completion:
    return Completion(text="", finish_reason="error", error=message)
