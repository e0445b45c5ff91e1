"""A teacher behind any OpenAI-compatible endpoint. Owns requests, retries and what an endpoint's answers mean.

Knows nothing of ledgers; the one thing it shares with them is the reservation it extends before it repeats a request
that may have been billed. The key lives in the session's headers and is blanked out of everything that comes back.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.budget import current_reservation
from tunesmith.teachers.endpoint import Attempt, Dialect, explain_refusal, public_url, retry_after_seconds
from tunesmith.types import Completion, FinishReason, TeacherRequest, Usage

FIRST_DELAY_SECONDS = 0.5
"""Longest wait before the first retry; doubles with each one. The actual wait is drawn from [0, that] ("full jitter",
AWS Architecture Blog, 2015), so that clients which failed together do not come back together."""

LONGEST_DELAY_SECONDS = 30.0
"""Where the doubling ends."""

LONGEST_RETRY_AFTER_SECONDS = 300.0
"""An endpoint that asks for a longer pause has its quota used up: the request fails and says so."""

_RETRY_STATUS = frozenset({408, 409, 425, 429})


class OpenAITeacher:
    """POST {base_url}/chat/completions.

    concurrency: requests in flight. timeout_seconds: per attempt. max_retries: tries after the first.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key: str | None,
        price: Price,
        concurrency: int,
        timeout_seconds: float,
        max_retries: int,
    ) -> None:
        self.identity = f"openai:{model}@{public_url(base_url)}"
        self.price = price
        self.model = model
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._secrets = _spellings(api_key) if api_key else ()
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._slots = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None
        self._dialect = Dialect()
        self._reached = False  # whether this endpoint has ever answered anything

    def __repr__(self) -> str:
        return f"OpenAITeacher({self.identity!r}, key={'hidden' if self._secrets else None})"

    async def complete(self, request: TeacherRequest) -> Completion:
        """One answer, after at most max_retries further tries. See protocols.Teacher for what is raised."""
        async with self._slots:
            worst = self._worst_case(request)
            maybe_billed = 0.0
            attempt = Attempt("failed", "no attempt was made")
            for number in range(self._max_retries + 1):
                if number > 0:
                    await asyncio.sleep(self._delay(number, attempt))
                attempt = await self._attempt(request)
                if attempt.kind == "answered":
                    assert attempt.completion is not None
                    return attempt.completion.model_copy(
                        update={"cost_usd": attempt.completion.cost_usd + maybe_billed}
                    )
                maybe_billed += worst if attempt.maybe_billed else 0.0
                if attempt.kind == "failed" or (attempt.retry_after or 0.0) > LONGEST_RETRY_AFTER_SECONDS:
                    break
                reservation = current_reservation.get()
                more = worst if attempt.maybe_billed else 0.0
                if number < self._max_retries and more and reservation is not None and not reservation.extend(more):
                    attempt.message += "; not tried again: the answer may have been billed and the budget ends here"
                    break
            if not self._reached and attempt.kind == "retry" and attempt.unreachable:
                raise TeacherError(
                    f"cannot reach the endpoint after {self._max_retries + 1} tries: {attempt.message}",
                    where=public_url(self._url),
                    hint="is the server running, and is `base_url` right?",
                )
            tries = f" (tried {number + 1} times)" if number else ""
            return Completion(text="", finish_reason="error", error=f"{attempt.message}{tries}", cost_usd=maybe_billed)

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        """Bytes of UTF-8 plus 16 a message: no byte-level tokenizer makes more tokens than there are bytes."""
        size = sum(len(message.content.encode("utf-8", "replace")) + 16 for message in request.messages)
        schema = request.sampling.json_schema
        return size + (len(orjson.dumps(schema)) if schema is not None else 0)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _worst_case(self, request: TeacherRequest) -> float:
        return self.price.cost(self.count_prompt_tokens(request), request.sampling.max_tokens)

    def _delay(self, number: int, last: Attempt) -> float:
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** (number - 1))
        # Retry-After is a lower bound; a little jitter on top keeps a crowd from returning at the same moment
        return random.uniform(0, longest) if last.retry_after is None else last.retry_after + random.uniform(0, 0.1)

    async def _attempt(self, request: TeacherRequest) -> Attempt:
        """One POST, and again at once where the endpoint refuses a parameter that another form can say."""
        while True:
            body = self._dialect.body(self.model, request)
            try:
                async with self._open_session().post(
                    self._url, data=orjson.dumps(body), allow_redirects=False
                ) as answer:
                    status, headers, data = answer.status, answer.headers, await answer.read()
            except TimeoutError:
                return Attempt("retry", f"no answer within {self._timeout_seconds:g} s", maybe_billed=True)
            except aiohttp.ClientConnectorError as error:
                return Attempt("retry", f"cannot connect: {self._blank(str(error))}", unreachable=True)
            except aiohttp.InvalidURL:
                raise TeacherError("`base_url` is no URL", where=public_url(self._url)) from None
            except (aiohttp.ClientError, OSError) as error:
                reason = self._blank(str(error)) or type(error).__name__
                return Attempt("retry", f"the connection broke: {reason}", maybe_billed=True)
            self._reached = True
            if status == 200:
                return self._read(data, request)
            message = self._blank(_error_message(data)) or f"HTTP {status}"
            if status in (400, 422) and self._dialect.adapt(body, message):
                continue
            fatal = explain_refusal(status, message, headers.get("Location"), self.model, public_url(self._url))
            if fatal is not None:
                raise fatal
            if status in _RETRY_STATUS or status >= 500:
                return Attempt("retry", f"HTTP {status}: {message}", retry_after=retry_after_seconds(headers))
            return Attempt("failed", f"HTTP {status}: {message}")

    def _read(self, data: bytes, request: TeacherRequest) -> Attempt:
        """A 200. Broken JSON and missing choices are tried again; everything else is an answer, good or not."""
        if data.lstrip()[:1] == b"<":
            raise TeacherError(
                "the endpoint answered with a web page, not JSON",
                where=public_url(self._url),
                hint="`base_url` should end where /chat/completions can be added, usually in /v1",
            )
        try:
            answer = _loads(data)
            choice = answer["choices"][0]
            text = _text(choice["message"])
        except (ValueError, LookupError, TypeError, AttributeError):
            start = self._blank(data[:200].decode("utf-8", "replace")) or "nothing"
            return Attempt("retry", f"the answer is not a chat completion: {start}", maybe_billed=True)
        completion = self._completion(self._blank(text), choice.get("finish_reason"), answer.get("usage"), request)
        return Attempt("answered", completion=completion)

    def _completion(self, text: str, reason: Any, usage: Any, request: TeacherRequest) -> Completion:
        counted = _usage(usage)
        if counted is None:  # upper bounds, so that a budget holds
            size = min(len(text.encode("utf-8", "replace")), request.sampling.max_tokens)
            counted = Usage(prompt_tokens=self.count_prompt_tokens(request), completion_tokens=size, estimated=True)
        cost = self.price.cost(counted.prompt_tokens, counted.completion_tokens)
        if reason == "content_filter":
            error = "the endpoint withheld the answer (finish_reason content_filter)"
            return Completion(text=text, finish_reason="error", usage=counted, cost_usd=cost, error=error)
        finish: FinishReason = reason if reason in ("length", "tool_calls") else "stop"
        return Completion(text=text, finish_reason=finish, usage=counted, cost_usd=cost)

    def _blank(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[api key]")
        return text

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._concurrency),
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
                headers={"Content-Type": "application/json", **self._headers},
                trust_env=True,
            )
        return self._session


def _spellings(secret: str) -> tuple[str, ...]:
    """The secret as it may come back: plain, URL-encoded, base64."""
    encoded = base64.b64encode(secret.encode()).decode()
    return tuple(dict.fromkeys((secret, quote(secret, safe=""), encoded, encoded.rstrip("="))))


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # half of a surrogate pair, as cut answers have them: orjson refuses it, json reads it
        value = json.loads(data)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


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


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt < 0 or completion < 0:
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _error_message(data: bytes) -> str:
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
