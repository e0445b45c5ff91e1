"""POST /v1/chat/completions: messages in, a message or its pieces out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.chat.conditions import with_condition
from tunesmith.errors import DataError, RecipeError
from tunesmith.protocols import Prompt, TokenLogprob
from tunesmith.server.body import read_json
from tunesmith.server.connection import StreamResponse
from tunesmith.server.gateway import Gateway
from tunesmith.server.generation import Job, Running, build_sampling, check_context, check_json_schema
from tunesmith.server.protocol import ChatRequest, parse_request
from tunesmith.server.responses import RequestError, explain, json_response
from tunesmith.server.sse import DONE, EventWriter, error_event
from tunesmith.types import Message

_LONG_TEXT = 20_000  # characters above which rendering leaves the event loop


async def create_chat_completion(request: Request, gateway: Gateway) -> Response:
    """One request, from its body to its response."""
    body = await read_json(request, gateway.settings)
    asked = parse_request(body, ChatRequest)
    gateway.check_model(asked.model)
    job = await _job(asked, gateway)
    running = gateway.generator.run(job)
    if asked.stream:
        events = _events(running, asked, gateway.model.id)
        return StreamResponse(request, events, running, gateway.settings.write_timeout_seconds)
    return await gateway.whole(request, running, _whole(running, asked, gateway.model.id))


async def _job(asked: ChatRequest, gateway: Gateway) -> Job:
    schema = asked.response_format.wanted_schema() if asked.response_format else None
    if schema is not None:
        check_json_schema(schema)
    messages = [
        Message(
            role="system" if message.role == "developer" else message.role, content=message.text(), name=message.name
        )
        for message in asked.messages
    ]
    messages = gateway.model.with_system(messages, enabled=gateway.settings.use_system_prompt)
    prompt = await _render(gateway, _conditioned(gateway, messages, asked.condition))
    wanted = asked.max_completion_tokens or asked.max_tokens
    max_tokens = check_context(
        prompt,
        wanted,
        gateway.engine.context_length,
        prompt_param="messages",
        tokens_param="max_completion_tokens" if asked.max_completion_tokens else "max_tokens",
    )
    return Job(
        prompts=[prompt],
        n=asked.n or 1,
        sampling=build_sampling(asked, max_tokens=max_tokens, json_schema=schema),
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def _conditioned(gateway: Gateway, messages: Sequence[Message], condition: str | None) -> list[Message]:
    try:
        return with_condition(messages, condition, template=gateway.model.renderer.template, where="condition")
    except RecipeError as error:
        raise RequestError(400, error.message, param="condition", code="unsupported_parameter") from error


async def _render(gateway: Gateway, messages: Sequence[Message]) -> Prompt:
    renderer = gateway.model.renderer
    try:
        if sum(len(message.content) for message in messages) > _LONG_TEXT:
            return await asyncio.to_thread(renderer.prompt, messages)
        return renderer.prompt(messages)
    except DataError as error:
        raise RequestError(400, error.message, param="messages", code="invalid_value") from error


async def _whole(running: Running, asked: ChatRequest, model: str) -> Response:
    num_choices = running.job.num_choices
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    logprobs: list[list[dict[str, Any]]] = [[] for _ in range(num_choices)]
    reasons = [""] * num_choices
    async for index, chunk in running:
        texts[index].append(chunk.text)
        if asked.logprobs:
            logprobs[index].extend(_entry(entry) for entry in chunk.logprobs)
        reasons[index] = chunk.finish_reason or ""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
            "logprobs": {"content": logprobs[index], "refusal": None} if asked.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index in range(num_choices)
    ]
    return json_response({**_head("chat.completion", model), "choices": choices, "usage": running.totals.usage()})


async def _events(running: Running, asked: ChatRequest, model: str) -> AsyncGenerator[bytes]:
    writer = EventWriter(
        _head("chat.completion.chunk", model), include_usage=asked.include_usage, content_key='"delta":{"content":'
    )
    greeted: set[int] = set()
    try:
        async for index, chunk in running:
            if index not in greeted:
                greeted.add(index)
                yield writer.choice(_delta(index, {"role": "assistant", "content": "", "refusal": None}))
            if asked.logprobs and (chunk.text or chunk.logprobs):
                content = [_entry(entry) for entry in chunk.logprobs]
                delta = _delta(index, {"content": chunk.text})
                yield writer.choice({**delta, "logprobs": {"content": content, "refusal": None}})
            elif chunk.text:
                yield writer.text(index, chunk.text)
            if chunk.finish_reason is not None:
                yield writer.choice({**_delta(index, {}), "finish_reason": chunk.finish_reason})
    except Exception as error:
        if not greeted:
            raise  # nothing was sent yet: a plain error response says it better
        yield error_event(explain(error))
        yield DONE
        return
    if asked.include_usage:
        yield writer.usage(running.totals.usage())
    yield DONE


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _entry(entry: TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.text,
        "logprob": entry.logprob,
        "bytes": list(entry.data),
        "top_logprobs": [
            {"token": other.text, "logprob": other.logprob, "bytes": list(other.data)} for other in entry.top
        ],
    }
