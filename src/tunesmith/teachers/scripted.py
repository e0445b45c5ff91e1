"""A teacher that answers from a file: for tests and demonstrations without a model. Deterministic, costs nothing
unless it is given a price.

Each line of the script is {"text": ...} or {"match": regex, "text": ...}; optional keys: "error" (the request fails
with that message), "finish_reason", "delay_seconds", "usage" ({"prompt_tokens", "completion_tokens"}), "top_logprobs" (per
token {text: log-probability}; for requests that ask for them).

A request is answered by the first `match` line whose expression is found in its messages; it may serve many requests.
The other lines serve in order: request number n (`sample_index`, which generators count up from 0) gets line n, and so
do repetitions of it, so that a resumed run meets the same answers. Different requests with one number take the lines
from there on in the order they come.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from tunesmith.errors import DataError, RecipeError
from tunesmith.hashing import digest_json
from tunesmith.protocols import Price
from tunesmith.types import Completion, FinishReason, Record, TeacherRequest, Usage


class ScriptLine(Record):
    """One line of a script."""

    text: str | None = None
    match: str | None = None
    error: str | None = None
    finish_reason: FinishReason = "stop"
    delay_seconds: float = 0.0
    usage: Usage | None = None
    top_logprobs: list[dict[str, float]] | None = None


class ScriptedTeacher:
    """Answers from a script file. Raises RecipeError where there is none, DataError naming the line that is wrong."""

    def __init__(self, script: Path, *, price: Price, where: str) -> None:
        self.identity = f"scripted:{script.name}"
        self.price = price
        lines = _read_script(script, where)
        self._matching = [(re.compile(line.match, re.DOTALL), line) for line in lines if line.match is not None]
        self._in_order = [line for line in lines if line.match is None]
        self._seen: dict[int, list[str]] = {}

    async def complete(self, request: TeacherRequest) -> Completion:
        line = self._find(request)
        if line is None:
            return Completion(
                text="",
                finish_reason="error",
                error=f"the script has run out: it has {len(self._in_order)} lines in order and "
                f"{len(self._matching)} with `match`, none for this request",
            )
        if line.delay_seconds:
            await asyncio.sleep(line.delay_seconds)
        if line.error is not None:
            return Completion(text="", finish_reason="error", error=line.error, usage=line.usage or Usage())
        text = line.text or ""
        usage = line.usage or Usage(
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            completion_tokens=len(text.split()),
            estimated=True,
        )
        cost = self.price.cost(usage.prompt_tokens, usage.completion_tokens)
        places = line.top_logprobs if request.sampling.top_logprobs is not None else None
        return Completion(text=text, finish_reason=line.finish_reason, usage=usage, cost_usd=cost, top_logprobs=places)

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        return sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)

    async def aclose(self) -> None:
        return None

    def _find(self, request: TeacherRequest) -> ScriptLine | None:
        text = "\n".join(message.content for message in request.messages)
        for pattern, line in self._matching:
            if pattern.search(text):
                return line
        digest = digest_json([message.model_dump(mode="json") for message in request.messages])
        seen = self._seen.setdefault(request.sample_index, [])
        if digest not in seen:
            seen.append(digest)
        number = request.sample_index + seen.index(digest)
        return self._in_order[number] if number < len(self._in_order) else None


def _read_script(path: Path, where: str) -> list[ScriptLine]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"the script {path} cannot be read: {error.strerror}",
            where=f"{where}.script",
            hint='a script is a JSONL file, one {"text": "..."} a line',
        ) from error
    lines: list[ScriptLine] = []
    for number, raw in enumerate(data.splitlines(), 1):
        if raw.strip():
            lines.append(_read_line(raw, f"{path.name}:{number}"))
    if not lines:
        raise DataError("the script is empty", where=path.name, hint='write one {"text": "..."} a line')
    return lines


def _read_line(raw: bytes, where: str) -> ScriptLine:
    try:
        value: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise DataError(f"this line is not JSON: {error}", where=where, hint='write {"text": "..."}') from None
    try:
        line = ScriptLine.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "line"
        raise DataError(f"{field}: {first['msg']}", where=where, hint='write {"text": "..."}') from None
    if (line.text is None) == (line.error is None):
        raise DataError("a line has either `text` or `error`", where=where, hint='write {"text": "..."}')
    try:
        re.compile(line.match or "")
    except re.error as error:
        raise DataError(f"`match` is no regular expression: {error}", where=where, hint="escape ( [ . * ?") from None
    return line
