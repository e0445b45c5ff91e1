"""POST /v1/completions: raw text or token ids in, their continuation out. No chat template is applied."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.protocols import Prompt, TokenLogprob
from tunesmith.server.body import read_json
from tunesmith.server.connection import StreamResponse
from tunesmith.server.gateway import Gateway
from tunesmith.server.generation import Job, Running, build_sampling, check_context
from tunesmith.server.protocol import CompletionRequest, parse_request
from tunesmith.server.responses import RequestError, explain, json_response
from tunesmith.server.sse import DONE, EventWriter, error_event

_DEFAULT_MAX_TOKENS = 16  # OpenAI's own default of this endpoint


async def create_completion(request: Request, gateway: Gateway) -> Response:
    """One request, from its body to its response."""
    body = await read_json(request, gateway.settings)
    asked = parse_request(body, CompletionRequest)
    gateway.check_model(asked.model)
    if asked.echo and asked.logprobs is not None:
        raise RequestError(
            400,
            "echo together with logprobs is not supported by this engine",
            param="echo",
            code="unsupported_parameter",
        )
    prompts = [_prompt(prompt, gateway) for prompt in asked.prompts()]
    context = gateway.engine.context_length
    limits = [
        check_context(prompt, asked.max_tokens, context, prompt_param="prompt", tokens_param="max_tokens")
        for prompt in prompts
    ]
    max_tokens = asked.max_tokens or min(_DEFAULT_MAX_TOKENS, *limits)
    sampling = build_sampling(asked, max_tokens=max_tokens, json_schema=None)
    echoes = [gateway.model.renderer.tokenizer.decode(prompt.input_ids) if asked.echo else "" for prompt in prompts]
    running = gateway.generator.run(Job(prompts, asked.n or 1, sampling, asked.logprobs))
    if asked.stream:
        events = _events(running, asked, gateway.model.id, echoes)
        return StreamResponse(request, events, running, gateway.settings.write_timeout_seconds)
    return await gateway.whole(request, running, _whole(running, asked, gateway.model.id, echoes))


def _prompt(prompt: str | list[int], gateway: Gateway) -> Prompt:
    ids = gateway.model.encode(prompt) if isinstance(prompt, str) else prompt
    size = len(gateway.model.renderer.tokenizer)
    unknown = [token for token in ids if token >= size]
    if unknown:
        raise RequestError(
            400, f"token id {unknown[0]} is not in the vocabulary of {size}", param="prompt", code="invalid_value"
        )
    return Prompt(tuple(ids), gateway.model.renderer.stop_ids)


async def _whole(running: Running, asked: CompletionRequest, model: str, echoes: Sequence[str]) -> Response:
    job = running.job
    texts = [[echoes[index // job.n]] for index in range(job.num_choices)]
    entries: list[list[TokenLogprob]] = [[] for _ in range(job.num_choices)]
    reasons = [""] * job.num_choices
    async for index, chunk in running:
        texts[index].append(chunk.text)
        entries[index].extend(chunk.logprobs)
        reasons[index] = chunk.finish_reason or ""
    choices = [
        {
            "index": index,
            "text": "".join(texts[index]),
            "logprobs": LegacyLogprobs().entries(entries[index]) if asked.logprobs is not None else None,
            "finish_reason": reasons[index],
        }
        for index in range(job.num_choices)
    ]
    return json_response({**_head(model), "choices": choices, "usage": running.totals.usage()})


async def _events(
    running: Running, asked: CompletionRequest, model: str, echoes: Sequence[str]
) -> AsyncGenerator[bytes]:
    writer = EventWriter(_head(model), include_usage=asked.include_usage, content_key='"text":')
    logprobs = [LegacyLogprobs() for _ in range(running.job.num_choices)]
    started: set[int] = set()
    try:
        async for index, chunk in running:
            text = chunk.text
            if index not in started:
                started.add(index)
                text = echoes[index // running.job.n] + text
            if asked.logprobs is not None and (text or chunk.logprobs):
                yield writer.choice({**_choice(index, text), "logprobs": logprobs[index].entries(chunk.logprobs)})
            elif text:
                yield writer.text(index, text)
            if chunk.finish_reason is not None:
                yield writer.choice({**_choice(index, ""), "finish_reason": chunk.finish_reason})
    except Exception as error:
        if not started:
            raise  # nothing was sent yet: a plain error response says it better
        yield error_event(explain(error))
        yield DONE
        return
    if asked.include_usage:
        yield writer.usage(running.totals.usage())
    yield DONE


class LegacyLogprobs:
    """Four lists of equal length; text offsets go on from one piece to the next."""

    def __init__(self) -> None:
        self._offset = 0
        self._pending = b""  # bytes of a character that is not whole yet

    def entries(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next entries, in the form of this endpoint."""
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offset)
            data = self._pending + entry.data
            text = data.decode("utf-8", "ignore")
            self._pending = data[len(text.encode()) :]
            self._offset += len(text)
        return {
            "tokens": [_token(entry) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{_token(other): other.logprob for other in entry.top} for entry in entries],
            "text_offset": offsets,
        }


def _token(entry: TokenLogprob) -> str:
    """The token's text; a part of a character is written as OpenAI does, `bytes:\\xf0\\x9f`."""
    try:
        return entry.data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.data)


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def _choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}
