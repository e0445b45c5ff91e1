"""The JSON Schema of the answers, checked once before anything relies on it.

A schema must be whole in itself: no reference to another file or address, and none that leads nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from tunesmith.errors import DataError


def load_schema(path: Path) -> dict[str, Any]:
    """The schema in a .json file, checked. DataError where it is no JSON object or no valid schema."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the schema is not valid JSON: {error}", where=path.name) from None
    if not isinstance(value, dict):
        raise DataError(f"a JSON Schema is an object, this is {type(value).__name__}", where=path.name)
    check_schema(value, where=path.name)
    return value


def check_schema(schema: dict[str, Any], *, where: str) -> None:
    """DataError unless this is a valid JSON Schema (2020-12, or the draft its $schema names) that is whole in itself."""
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = error.json_path.removeprefix("$").lstrip(".") or "the top"
        raise DataError(
            f"not a valid JSON Schema at {place}: {error.message[:300]}",
            where=where,
            hint="see https://json-schema.org/understanding-json-schema",
        ) from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise DataError(
                f"the schema refers to another document: {reference!r}",
                where=where,
                hint="put the definition under $defs and refer to it as #/$defs/NAME",
            )
        if reference.startswith("#/") and not _leads_somewhere(schema, reference):
            raise DataError(f"the schema refers to {reference!r}, which is not in it", where=where)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _leads_somewhere(schema: Any, reference: str) -> bool:
    place = schema
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and name in place:
            place = place[name]
        elif isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        else:
            return False
    return True
