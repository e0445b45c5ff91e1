"""From a checked request to a merged stream of its choices. Both endpoints and both modes run through here.

Owns sampling parameters, context checks, slots, the n choices, counting and cancellation; knows no wire format.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import orjson

from tunesmith.protocols import Chunk, Prompt, ServingEngine
from tunesmith.server.limits import Admission, unavailable
from tunesmith.server.metrics import Metrics
from tunesmith.server.protocol import MAX_SCHEMA_BYTES, Sampling, effective_top_p
from tunesmith.server.responses import RequestError, shorten
from tunesmith.types import SamplingParams


@dataclass
class Job:
    """One request: prompts times n choices, in the order of their index."""

    prompts: Sequence[Prompt]
    n: int
    sampling: SamplingParams
    top_logprobs: int | None
    started: float = field(default_factory=time.monotonic)

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n

    def choice(self, index: int) -> tuple[Prompt, SamplingParams]:
        """Choices of one prompt draw with seeds that follow each other, so that they differ and repeat."""
        sampling, seed = self.sampling, self.sampling.rng_seed
        if seed is not None and self.n > 1:
            sampling = sampling.model_copy(update={"rng_seed": seed + index % self.n})
        return self.prompts[index // self.n], sampling


@dataclass
class Totals:
    """Tokens of a request so far, summed over its choices (the prompt counts once per prompt)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, last: Chunk, *, with_prompt: bool) -> None:
        """Count a choice by its last chunk."""
        if with_prompt:
            self.prompt_tokens += last.prompt_tokens
            self.cached_tokens += last.cached_tokens
        self.completion_tokens += last.completion_tokens

    def usage(self) -> dict[str, Any]:
        """As it stands in an answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def build_sampling(request: Sampling, *, max_tokens: int, json_schema: dict[str, Any] | None) -> SamplingParams:
    """Sampling parameters with OpenAI's defaults where the request is silent."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=effective_top_p(request.top_p),
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        stop=tuple(request.stop or ()),
        rng_seed=request.seed,
        json_schema=json_schema,
    )


def check_context(
    prompt: Prompt, wanted: int | None, context_length: int, *, prompt_param: str, tokens_param: str
) -> int:
    """Tokens the answer may have. Raises RequestError 400 where prompt and answer do not fit together."""
    used = len(prompt.input_ids)
    if used == 0:
        raise RequestError(400, "the prompt is empty", param=prompt_param, code="invalid_value")
    room = context_length - used
    if room < 1:
        raise RequestError(
            400,
            f"the prompt has {used} tokens; the context length is {context_length}, prompt and answer together",
            param=prompt_param,
            code="context_length_exceeded",
        )
    if wanted is not None and wanted > room:
        raise RequestError(
            400,
            f"{used} prompt tokens and {wanted} of {tokens_param} are more than the context length of {context_length}",
            param=tokens_param,
            code="context_length_exceeded",
        )
    return room if wanted is None else wanted


def check_json_schema(schema: dict[str, Any]) -> None:
    """Raises RequestError 400 for what is no JSON schema; what an engine cannot enforce is found by the engine."""
    param = "response_format"
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise RequestError(
            400, f"the schema is larger than {MAX_SCHEMA_BYTES} bytes", param=param, code="invalid_value"
        )
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the schema"
        raise RequestError(
            400, f"no valid JSON schema: {where}: {shorten(error.message, 160)}", param=param, code="invalid_value"
        ) from None
    pending: list[Any] = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise RequestError(
                    400, "$ref may only point inside the schema itself", param=param, code="invalid_value"
                )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


class Generator:
    """Runs jobs on an engine within the slots."""

    def __init__(self, engine: ServingEngine, admission: Admission, metrics: Metrics) -> None:
        self._engine = engine
        self._admission = admission
        self._metrics = metrics

    def run(self, job: Job) -> Running:
        """Start a job. Room in the queue is claimed now (RequestError 503), and given back by the answer's aclose()."""
        self._admission.claim(job.num_choices)
        return Running(job, self._engine, self._admission, self._metrics)


class Running:
    """(choice index, chunk) as they come; each choice's last chunk has finish_reason. aclose() must be called: it
    cancels in the engine whatever has not ended."""

    def __init__(self, job: Job, engine: ServingEngine, admission: Admission, metrics: Metrics) -> None:
        self.job = job
        self.totals = Totals()
        self._closed = False
        self._engine = engine
        self._admission = admission
        self._metrics = metrics
        self._choices = [self._choice(index) for index in range(job.num_choices)]
        self._items: Any = self._choices[0] if len(self._choices) == 1 else _merged(self._choices)

    def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        return self._items

    async def aclose(self) -> None:
        """Cancel what has not ended and give back the room in the queue. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._items.aclose()
            for choice in self._choices:
                await choice.aclose()
        finally:
            self._admission.release(self.job.num_choices)

    async def _choice(self, index: int) -> AsyncGenerator[tuple[int, Chunk]]:
        prompt, sampling = self.job.choice(index)
        record = self._metrics.answer(self.job.started)
        first_of_prompt = index % self.job.n == 0
        try:
            async with self._admission.slot():
                record.begin(len(prompt.input_ids))
                stream: Any = self._engine.stream(prompt, sampling, top_logprobs=self.job.top_logprobs)
                chunk = Chunk()
                async with aclosing(stream):
                    async for chunk in stream:
                        if chunk.finish_reason is None:
                            record.token()
                        else:
                            self.totals.add(chunk, with_prompt=first_of_prompt)
                            record.finish(chunk)
                        yield index, chunk
                if chunk.finish_reason is None:
                    raise unavailable("the server is shutting down", seconds=5, code="shutting_down")
        except Exception:
            record.fail()
            raise
        finally:
            record.close()


async def _merged(choices: list[Any]) -> AsyncGenerator[tuple[int, Chunk]]:
    """Several choices side by side. The first fault ends them all."""
    queue: asyncio.Queue[tuple[int, Chunk] | BaseException | None] = asyncio.Queue()

    async def pump(choice: Any) -> None:
        try:
            async with aclosing(choice):
                async for item in choice:
                    queue.put_nowait(item)
        except Exception as error:  # noqa: BLE001 - raised again by the reader
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        open_choices = len(tasks)
        while open_choices:
            item = await queue.get()
            if item is None:
                open_choices -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
