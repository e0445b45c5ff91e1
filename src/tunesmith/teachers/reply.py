"""What the bytes of an OpenAI-compatible answer mean: text, finish reason, usage, cost, and an error's own words.

Knows neither sockets nor retries. Secrets are blanked out of everything that comes back.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from tunesmith.protocols import Price
from tunesmith.types import Completion, FinishReason, TeacherRequest, Usage


class Reply(NamedTuple):
    """An answer, and what the endpoint said beside its text, as JSON."""

    completion: Completion
    raw: bytes


class Secrets:
    """Texts that must not come back, in every spelling in which an endpoint may send them."""

    def __init__(self, secrets: list[str]) -> None:
        plain = dict.fromkeys(spelling for secret in secrets for spelling in _spellings(secret))
        self._texts = tuple(plain)
        in_json = (orjson.dumps(text)[1:-1] for text in plain)
        self._bytes = tuple(dict.fromkeys(in_json))

    def blank(self, text: str) -> str:
        """The text with every secret replaced."""
        for secret in self._texts:
            if secret in text:
                text = text.replace(secret, "[api key]")
        return text

    def blank_json(self, data: bytes) -> bytes:
        """The same for JSON as orjson writes it."""
        for secret in self._bytes:
            if secret in data:
                data = data.replace(secret, b"[api key]")
        return data


def count_prompt_tokens(request: TeacherRequest) -> int:
    """Bytes of UTF-8 plus 16 a message: no byte-level tokenizer makes more tokens than there are bytes."""
    size = 16 * len(request.messages)
    for message in request.messages:
        text = message.content
        size += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if message.tool_calls is not None:
            size += len(orjson.dumps(message.tool_calls))
    schema = request.sampling.json_schema
    return size + (len(orjson.dumps(schema)) if schema is not None else 0)


def read_reply(data: bytes | dict[str, Any], request: TeacherRequest, price: Price, secrets: Secrets) -> Reply | None:
    """The chat completion in a 200 body. None where it is none (broken JSON, no choices): worth another try."""
    try:
        answer = load_json(data) if isinstance(data, bytes) else data
        choice = answer["choices"][0]
        message = choice["message"]
        text = secrets.blank(_text(message))
        usage = _usage(answer.get("usage"))
        completion = _completion(text, choice.get("finish_reason"), usage, request, price)
        if request.sampling.top_logprobs is not None:
            completion.top_logprobs = _top_logprobs(choice.get("logprobs"))
        rest = {name: value for name, value in message.items() if name != "content" or value != text}
        raw = orjson.dumps({**answer, "choices": [{**choice, "message": rest}, *answer["choices"][1:]]})
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return Reply(completion, secrets.blank_json(raw))


def load_json(data: bytes) -> Any:
    """A JSON value. ValueError where it is none."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # half of a surrogate pair, as cut answers have them: orjson refuses it, json reads it
        value = json.loads(data)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def error_message(data: bytes) -> str:
    """The endpoint's own words, at most 300 characters."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return " ".join(data[:2000].decode("utf-8", "replace").split())[:300]
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, dict):
        words = [error.get("message") or error.get("detail"), error.get("code"), error.get("param")]
        text = ", ".join(str(word) for word in words if word) or orjson.dumps(error).decode()
    else:
        text = str(error)
    return text[:300]


def _completion(text: str, reason: Any, usage: Usage | None, request: TeacherRequest, price: Price) -> Completion:
    if usage is None:  # upper bounds, so that a budget holds
        size = min(len(text.encode("utf-8", "replace")), request.sampling.max_tokens)
        usage = Usage(prompt_tokens=count_prompt_tokens(request), completion_tokens=size, estimated=True)
    cost = price.cost(usage.prompt_tokens, usage.completion_tokens)
    if reason == "content_filter":
        error = "the endpoint withheld the answer (finish_reason content_filter)"
        return Completion(text=text, finish_reason="error", usage=usage, cost_usd=cost, error=error)
    finish: FinishReason = reason if reason in ("length", "tool_calls") else "stop"
    return Completion(text=text, finish_reason=finish, usage=usage, cost_usd=cost)


def _text(message: dict[str, Any]) -> str:
    """Text of a message: a string, null (then a refusal, if any), or a list of parts."""
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def _top_logprobs(logprobs: Any) -> list[dict[str, float]] | None:
    """Per token the likeliest texts with their log-probabilities; None where the endpoint gives none, or not in OpenAI's
    form."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    places: list[dict[str, float]] = []
    for entry in content:
        likeliest: dict[str, float] = {}
        for other in entry.get("top_logprobs") or [entry]:
            text, value = other.get("token"), other.get("logprob")
            if isinstance(text, str) and isinstance(value, int | float) and math.isfinite(value):
                likeliest[text] = max(float(value), likeliest.get(text, -math.inf))
        places.append(likeliest)
    return places


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _spellings(secret: str) -> tuple[str, ...]:
    """The secret as it may come back: plain, URL-encoded, base64."""
    encoded = base64.b64encode(secret.encode()).decode()
    return tuple(dict.fromkeys((secret, quote(secret, safe=""), encoded, encoded.rstrip("="))))
