"""Which fields of a JSON answer are compared how. Reads a JSON Schema and the references; knows no answers.

Only the top level of an object is looked at: a nested value is one field, compared as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.errors import RecipeError, nearest

_RESTRICTING = ("enum", "const", "pattern")
_EXACT_TYPES = ("boolean", "number", "integer")
_COMBINATIONS = ("anyOf", "oneOf", "allOf")


@dataclass(frozen=True)
class Target:
    """What an answer should be. is_json: the answer is one JSON value, and fields are read from it."""

    is_json: bool
    schema: Mapping[str, Any] | None = None
    exact_fields: tuple[str, ...] = ()
    text_field: str | None = None


def find_target(
    schema: Mapping[str, Any] | None,
    references: Sequence[Any],
    exact_fields: Sequence[str] | Literal["auto"],
    text_field: str | Literal["auto"],
) -> Target:
    """Resolve the recipe's `evaluate.exact_fields` and `evaluate.text_field`.

    references: the parsed reference answers that are JSON objects; they decide which of several free-text fields is
    meant (the longest on average) and, without a schema, which names are known. Raises RecipeError for a field that
    neither the schema nor any reference has.
    """
    objects = [reference for reference in references if isinstance(reference, dict)]
    properties = _properties(schema) if schema is not None else {}
    known = list(dict.fromkeys([*properties, *(name for each in objects for name in each)]))
    if exact_fields == "auto":
        exact = tuple(name for name, field in properties.items() if is_exact(field, schema or {}))
    else:
        exact = tuple(_known(name, known, "recipe.evaluate.exact_fields") for name in exact_fields)
    if text_field == "auto":
        free = [name for name, field in properties.items() if name not in exact and is_text(field, schema or {})]
        text = max(free, key=lambda name: (_mean_length(name, objects), -free.index(name))) if free else None
    else:
        text = _known(text_field, known, "recipe.evaluate.text_field")
    return Target(schema is not None or bool(exact) or text is not None, schema, exact, text)


def is_exact(field: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a field's values are restricted by enum, const, pattern, or are booleans or numbers; null aside."""
    return any(
        any(key in variant for key in _RESTRICTING) or bool(set(_EXACT_TYPES) & _types(variant))
        for variant in _variants(field, schema)
    )


def is_text(field: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a field holds free text."""
    return not is_exact(field, schema) and any("string" in _types(variant) for variant in _variants(field, schema))


def choices(name: str, schema: Mapping[str, Any] | None) -> list[Any]:
    """The values an enum field may take, in the schema's order; [] for any other field."""
    if schema is None:
        return []
    values: list[Any] = []
    for variant in _variants(_properties(schema).get(name, {}), schema):
        values += variant.get("enum", [])
        if _types(variant) == {"null"}:
            values.append(None)
    return values if any(value is not None for value in values) else []


def _properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variant in _variants(schema, schema):
        properties = variant.get("properties")
        if isinstance(properties, dict):
            found.update(properties)
    return found


def _variants(field: Any, schema: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    """The field's schema and every one it refers to or combines; local references only, loops cut."""
    if not isinstance(field, dict) or depth > 16:
        return []
    found: list[Mapping[str, Any]] = [field]
    reference = field.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found += _variants(_resolve(reference, schema), schema, depth + 1)
    for key in _COMBINATIONS:
        options = field.get(key)
        for option in options if isinstance(options, list) else []:
            found += _variants(option, schema, depth + 1)
    return found


def _resolve(reference: str, schema: Mapping[str, Any]) -> Any:
    place: Any = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        place = place.get(part) if isinstance(place, dict) else None
    return place


def _types(variant: Mapping[str, Any]) -> set[str]:
    kind = variant.get("type")
    return {kind} if isinstance(kind, str) else set(kind) if isinstance(kind, list) else set()


def _mean_length(name: str, objects: Sequence[Mapping[str, Any]]) -> float:
    lengths = [len(value) for each in objects if isinstance(value := each.get(name), str)]
    return sum(lengths) / len(lengths) if lengths else 0.0


def _known(name: str, known: Sequence[str], where: str) -> str:
    if name not in known:
        close = nearest(name, known)
        raise RecipeError(
            f"neither the output schema nor any row has a field {name!r}",
            where=where,
            hint=f"did you mean {close!r}?" if close else f"fields: {', '.join(known) or 'none'}",
        )
    return name
