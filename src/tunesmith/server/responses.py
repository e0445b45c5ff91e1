"""Answers that are not text of a model: errors in OpenAI's shape, and JSON responses. The server's only translator.

No message holds a path, a traceback, or more than 200 characters of what the client sent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError
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


def from_validation(error: ValidationError) -> RequestError:
    """The first complaint of pydantic, with the parameter's name."""
    first = error.errors(include_url=False, include_context=False, include_input=True)[0]
    param = ".".join(str(part) for part in _readable(first["loc"]))
    if first["type"] == "missing":
        return RequestError(
            400, f"missing required parameter: {param!r}", param=param, code="missing_required_parameter"
        )
    found = shorten(repr(first["input"]), 80)
    message = first["msg"].removeprefix("Value error, ")
    return RequestError(400, f"{param}: {message} (found {found})", param=param, code="invalid_value")


def _readable(place: tuple[Any, ...]) -> list[Any]:
    """Leaves out the names pydantic gives to the branches of a union; parameters are lower case and plain."""
    return [part for part in place if isinstance(part, int) or re.fullmatch(r"[a-z_]\w*", part)] or ["body"]


def clean(message: str) -> str:
    """A message without file paths, on one line, of bounded length."""
    return shorten(_PATHS.sub("(path)", " ".join(message.split())), _MAX_MESSAGE)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; the end is replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
