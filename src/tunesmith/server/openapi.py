"""What the OpenAPI file says about bodies and errors: the same forms that check requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MEANINGS = {
    400: "The request is wrong; `param` names the parameter.",
    401: "No or a wrong API key.",
    403: "This host name or origin may not call.",
    404: "No such model or path.",
    405: "Method not allowed.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests of one caller; see Retry-After.",
    431: "The header is too large.",
    500: "The engine failed.",
    503: "Loading, queue full, or shutting down; see Retry-After.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    for status, text in _MEANINGS.items()
}


def answers(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """Every response of an operation, with the media types of its success."""
    success = {"description": "Successful response", "content": {kind: {} for kind in media_types}}
    return {200: success, **ERRORS}


def body_of(form: type[BaseModel]) -> dict[str, Any]:
    """The request body of a form, its parts inlined where they are used."""
    schema = form.model_json_schema(by_alias=True)
    parts = schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema, parts)}}}}


def _inline(value: Any, parts: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inline(item, parts) for item in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        return _inline(parts[reference.removeprefix("#/$defs/")], parts)
    return {key: _inline(item, parts) for key, item in value.items()}
