"""Reads a request body within limits and turns it into a JSON object; refuses what two parsers could read differently."""

from __future__ import annotations

import asyncio
import codecs
import json
import math
import re
from typing import Any

from starlette.requests import Request

from tunesmith.server.responses import RequestError, shorten
from tunesmith.server.settings import ServerSettings

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


async def read_json(request: Request, settings: ServerSettings) -> dict[str, Any]:
    """The body as an object. Raises RequestError: 400, 408, 413 or 415."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            415,
            f"content type is {shorten(kind, 80) or 'missing'!r}, expected application/json",
            code="unsupported_media_type",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "compressed bodies are not accepted", code="unsupported_media_type")
    raw = await read_body(request, settings)
    return parse_object(raw, settings.max_json_depth)


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The raw body, at most `max_body_bytes`."""
    limit = settings.max_body_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                pieces.append(piece)
    except TimeoutError:
        raise RequestError(408, "the request body did not arrive in time", headers={"Connection": "close"}) from None
    return b"".join(pieces)


def parse_object(raw: bytes, max_depth: int) -> dict[str, Any]:
    """JSON text to an object. Refuses a byte order mark, other encodings, repeated keys, NaN and deep nesting."""
    if raw.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _invalid("the body starts with a byte order mark; send plain UTF-8")
    _check_depth(raw, max_depth)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
    except UnicodeDecodeError:
        raise _invalid("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (RecursionError, ValueError) as error:
        raise _invalid(f"the body is not JSON: {shorten(str(error), 100)}") from None
    if not isinstance(value, dict):
        raise _invalid(f"the body is a {type(value).__name__}, expected a JSON object")
    return value


def _check_depth(raw: bytes, max_depth: int) -> None:
    depth = 0
    for match in _TOKENS.finditer(raw):
        first = raw[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise _invalid(f"the body is nested deeper than {max_depth} levels")
        elif first in b"]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(
                    400, f"the key {shorten(key, 80)!r} appears twice", param=shorten(key, 80), code="invalid_json"
                )
            seen.add(key)
    return value


def _constant(name: str) -> Any:
    raise _invalid(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _invalid(f"the number {shorten(text, 40)} is too large")
    return value


def _invalid(message: str) -> RequestError:
    return RequestError(400, message, code="invalid_json")


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, f"the request body is larger than {limit} bytes", code="request_too_large", headers={"Connection": "close"}
    )
