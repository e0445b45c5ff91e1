"""JSON Schemas of the answers that generators ask for. A teacher in this process is held to them token by token, so
that a small model writes rows that can be read. Knows nothing of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from tunesmith.recipe import Generate

Schema = dict[str, Any]
STRING: Schema = {"type": "string", "minLength": 1}
_LONGER = 1.5
_SHORTEST_LIMIT = 200  # characters


def is_constrained(options: Generate) -> bool:
    """Whether answers are held to a schema: as the recipe says, else for local teachers alone."""
    return options.teacher.kind == "local" if options.constrain == "auto" else options.constrain


def array_of(item: Schema, count: int) -> Schema:
    """Exactly `count` items."""
    return {"type": "array", "items": item, "minItems": count, "maxItems": count}


def object_of(**fields: Schema) -> Schema:
    """An object with exactly these fields, in this order."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def message_like(inputs: Sequence[str]) -> Schema:
    """A text at most half as long again as the longest of these (or of 200 characters). A small model that loses its way inside a string would
    else write until its tokens are spent; so the string closes, and the next row begins."""
    longest = max(map(len, inputs), default=0)
    return {**STRING, "maxLength": max(int(longest * _LONGER), _SHORTEST_LIMIT)} if longest else STRING


def rows_schema(count: int, output_schema: Schema | None, message: Schema = STRING) -> Schema:
    """`count` objects with "input" and "output"; the output has the task's schema, where there is one.

    References inside that schema are kept whole by moving its definitions to the root.
    """
    output, definitions = dict(output_schema or STRING), {}
    for name in ("$defs", "definitions"):
        if name in output:
            definitions[name] = output.pop(name)
    output.pop("$schema", None)
    output.pop("$id", None)
    return {**array_of(object_of(input=message, output=output), count), **definitions}


def validator_of(schema: Schema) -> Validator:
    """In the draft the schema names, else in that of 2020-12."""
    return validator_for(schema, default=Draft202012Validator)(schema)


def schema_fault(validator: Validator, text: str) -> str | None:
    """Why a text is no JSON value of the schema; None where it is one."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"the output is no JSON: {error}"
    fault = next(iter(validator.iter_errors(value)), None)
    return None if fault is None else f"{fault.json_path}: {fault.message}"[:300]
