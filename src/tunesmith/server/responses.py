"""Answers that are not text of a model: errors in OpenAI's shape, and JSON responses. The server's only translator.

No message holds a path, a traceback, or more than 200 characters of what the client sent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, cast

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from tunesmith.errors import DataError, TunesmithError

logger = logging.getLogger("tunesmith.server")

MAX_ECHO = 200
_MAX_MESSAGE = 1000
_PATHS = re.compile(r"(?<![\w.])(?:[A-Za-z]:\\|/)(?:[\w.@~+-]+[/\\])+[\w.@~+-]*")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "server_error",
}


class RequestError(Exception):
    """A request that is answered with an error. `code` is a word or None, never a number."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        error = {
            "message": clean(self.message),
            "type": _TYPES[self.status],
            "param": shorten(self.param, MAX_ECHO) if self.param else None,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> Response:
        return json_response(self.body(), status=self.status, headers=self.headers)


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, headers=dict(headers or {}), media_type="application/json")


def explain(error: Exception) -> RequestError:
    """A fault while answering, as the client may see it: what the request caused is named; the rest goes to the log."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, DataError):
        param = "response_format" if error.where == "json_schema" else "messages"
        return RequestError(400, error.message, param=param, code="invalid_value")
    logger.error("request failed", exc_info=error)
    if isinstance(error, TunesmithError):
        return RequestError(500, "the engine failed on this request; the server's log says why", code="engine_error")
    return RequestError(500, "internal error; the server's log says why", code="internal_error")


def from_validation(error: ValidationError, body: Any) -> RequestError:
    """pydantic's first complaint in our words, under the name of the parameter as it stands in the body.

    Each branch of a union complains by itself; the ones that got furthest into the body are those that were meant.
    """
    faults = error.errors(include_url=False)
    top = _place(faults[0], body)
    meant = [fault for fault in faults if _place(fault, body)[: len(top)] == top]
    place = max((_place(fault, body) for fault in meant), key=len)
    meant = [fault for fault in meant if _place(fault, body) == place]
    param = ".".join(map(str, place)) or "body"
    first = meant[0]
    if first["type"] == "missing":
        return RequestError(
            400, f"missing required parameter: {param!r}", param=param, code="missing_required_parameter"
        )
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"unknown parameter: {shorten(param, 80)!r}", param=param, code="unknown_parameter")
    if first["type"] == "value_error":
        return RequestError(400, f"{param}: {first.get('ctx', {}).get('error')}", param=param, code="invalid_value")
    expected = ", or ".join(dict.fromkeys(expectation(fault) for fault in meant))
    found = shorten(repr(first["input"]), 80)
    return RequestError(400, f"{param}: expected {expected}, found {found}", param=param, code="invalid_value")


def expectation(fault: ErrorDetails) -> str:
    """What pydantic wanted, in the words after "expected"."""
    kind, limits = fault["type"], fault.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in _SIZES:
        return _SIZES[kind].format(**limits)
    return fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


_KINDS = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "text",
}
_SIZES = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text of at least {min_length} characters",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
}


def _place(fault: ErrorDetails, body: Any) -> tuple[int | str, ...]:
    """Where in the body the complaint is: without the names that pydantic gives to branches of a union."""
    kept: list[int | str] = []
    for part in fault["loc"]:
        if isinstance(body, dict) and part in body:
            body = cast("dict[Any, Any]", body)[part]
        elif isinstance(body, list) and isinstance(part, int) and part < len(cast("list[Any]", body)):
            body = cast("list[Any]", body)[part]
        else:
            continue
        kept.append(part)
    return (*kept, fault["loc"][-1]) if fault["type"] == "missing" else tuple(kept)


def clean(message: str) -> str:
    """A message without file paths, on one line, of bounded length."""
    return shorten(_PATHS.sub("(path)", " ".join(message.split())), _MAX_MESSAGE)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; the end is replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
