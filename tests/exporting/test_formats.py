"""Names of formats and files."""

from __future__ import annotations

import pytest

from tunesmith.errors import RecipeError
from tunesmith.exporting.formats import export_name, gguf_name, parse_formats
from tunesmith.recipe import Export


def test_the_recipes_default_is_a_folder_and_eight_bits():
    wanted = parse_formats(Export().formats)
    assert wanted.safetensors
    assert wanted.quantisations == ("q8_0",)


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (["gguf-q8"], "no export format named 'gguf-q8'", "did you mean 'gguf-q8_0'?"),
        (["onnx"], "no export format named 'onnx'", "known: safetensors, gguf-f16"),
        ([], "no format is named", None),
        (["gguf-f16", "gguf-f16"], "a format is named twice", None),
    ],
)
def test_a_wrong_format_is_named_with_what_was_meant(names, message, hint):
    with pytest.raises(RecipeError) as caught:
        parse_formats(names)
    assert message in caught.value.message
    assert caught.value.where == "recipe.export.formats"
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("smollm2-135m", "smollm2-135m-tuned"),
        ("Org/Some Model", "Some-Model-tuned"),
        ("/models/x.gguf", "x-tuned"),
        ("./my model/", "my-model-tuned"),
    ],
)
def test_the_tuned_model_is_named_after_its_base(base, expected):
    assert export_name(base) == expected
    assert gguf_name(expected, "q8_0") == f"{expected}-q8_0.gguf"
