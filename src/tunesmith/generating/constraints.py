"""JSON Schemas of the answers that generators ask for. A teacher in this process is held to them token by token, so
that a small model writes rows that can be read. Knows nothing of prompts."""

from __future__ import annotations

from typing import Any

from tunesmith.recipe import Generate

Schema = dict[str, Any]
STRING: Schema = {"type": "string", "minLength": 1}


def is_constrained(options: Generate) -> bool:
    """Whether answers are held to a schema: as the recipe says, else for local teachers alone."""
    return options.teacher.kind == "local" if options.constrain == "auto" else options.constrain


def array_of(item: Schema, count: int) -> Schema:
    """Exactly `count` items."""
    return {"type": "array", "items": item, "minItems": count, "maxItems": count}


def object_of(**fields: Schema) -> Schema:
    """An object with exactly these fields, in this order."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def rows_schema(count: int, output_schema: Schema | None) -> Schema:
    """`count` objects with "input" and "output"; the output has the task's schema, where there is one.

    References inside that schema are kept whole by moving its definitions to the root.
    """
    output, definitions = dict(output_schema or STRING), {}
    for name in ("$defs", "definitions"):
        if name in output:
            definitions[name] = output.pop(name)
    output.pop("$schema", None)
    output.pop("$id", None)
    return {**array_of(object_of(input=STRING, output=output), count), **definitions}
