"""A schema is checked before anything relies on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.schema import check_schema, load_schema
from tunesmith.errors import DataError


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "objekt"},
            "recipe.x: not a valid JSON Schema at type: 'objekt' is not valid under any of the given schemas",
        ),
        (
            {"properties": {"a": {"enum": "low"}}},
            "not a valid JSON Schema at properties.a.enum: 'low' is not of type 'array'",
        ),
        ({"$ref": "other.json"}, "recipe.x: the schema refers to another document: 'other.json'"),
        ({"items": [{"$ref": "#/$defs/gone"}], "type": "array"}, "not a valid JSON Schema at items"),
        ({"anyOf": [{"$ref": "#/$defs/gone"}]}, "the schema refers to '#/$defs/gone', which is not in it"),
        ({"pattern": "(["}, "pattern"),
    ],
)
def test_a_bad_schema_names_the_place(schema: dict[str, Any], message: str):
    with pytest.raises(DataError) as caught:
        check_schema(schema, where="recipe.x")
    assert message in str(caught.value)


def test_good_schemas_pass():
    check_schema({"type": "object", "properties": {"a": {"$ref": "#/$defs/x~1y"}}, "$defs": {"x/y": {}}}, where="r")
    check_schema({"anyOf": [{"type": "null"}, {"$ref": "#/anyOf/0"}]}, where="r")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "s.json: the schema is not valid JSON"),
        (b"[]", "s.json: a JSON Schema is an object, this is list"),
        (b'{"type": 1}', "s.json: not a valid"),
    ],
)
def test_a_bad_schema_file_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "s.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_schema(tmp_path / "s.json")
    assert str(caught.value).startswith(message)


def test_a_good_schema_file_is_loaded(tmp_path: Path):
    (tmp_path / "s.json").write_text(json.dumps({"type": "object"}))
    assert load_schema(tmp_path / "s.json") == {"type": "object"}
