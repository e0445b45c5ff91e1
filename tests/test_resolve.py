"""A wrong recipe gets a message that names file, line, key and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.resolve import load_recipe, resolve_mapping

GOOD = "name: desk\nbase_model: smollm2-135m\ningest:\n  files: seeds.jsonl\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_bare_string_is_the_base_models_name_and_a_single_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD)).recipe
    assert recipe.base_model.name == "smollm2-135m"
    assert recipe.ingest.files == ("seeds.jsonl",)


def test_a_folder_stands_for_the_recipe_in_it(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert load_recipe(tmp_path).recipe.name == "desk"


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("full", 1e-5)])
def test_the_learning_rate_is_resolved_after_overrides(tmp_path: Path, method: str, rate: float) -> None:
    resolved = load_recipe(write(tmp_path, GOOD), [f"train.method={method}"])
    assert resolved.recipe.train.learning_rate == rate
    assert f"learning_rate: {rate}" in resolved.as_yaml() or f"learning_rate: {rate:.1e}" in resolved.as_yaml()


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD), ["train.learning_rate=3e-4"]).recipe.train.learning_rate == 3e-4


def test_an_override_creates_the_section_it_needs(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, GOOD), ["generate.teacher.kind=local", "generate.teacher.model=smollm2-135m"]
    ).recipe
    assert recipe.generate is not None
    assert recipe.generate.teacher.model == "smollm2-135m"


def test_a_section_can_be_switched_off(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD), ["export=null"]).recipe.export is None


BAD = [
    ("unknown key", "train:\n  lora_rnk: 8\n", "recipe.train.lora_rnk", "did you mean `lora_rank`?"),
    ("synonym", "train:\n  lora_r: 8\n", "recipe.train.lora_r", "this is called train.lora_rank"),
    ("synonym at the top", "cutoff_len: 512\n", "recipe.cutoff_len", "this is called tokenize.max_length"),
    (
        "key of another section",
        "tokenize:\n  num_epochs: 3\n",
        "recipe.tokenize.num_epochs",
        "belongs to the section `train`",
    ),
    ("out of bounds", "train:\n  lora_rank: 0\n", "greater than or equal to 1, found 0", "Rank of the added"),
    ("wrong type", "train:\n  num_epochs: many\n", "recipe.train.num_epochs", "Passes over the data"),
    ("neither number nor auto", "train:\n  learning_rate: fast\n", "or 'auto'", "Peak learning rate"),
    ("line is named", "curate:\n  blacklist: []\n  min_prompt_word: 2\n", "recipe.yaml:7", "min_prompt_words"),
    ("wrong choice", "train:\n  method: ia3\n", "'lora', 'dora', 'qlora' or 'full'", "lora = train small"),
    ("infinite fraction", "ingest2: 1\n", "recipe.ingest2", "did you mean `ingest`?"),
    (
        "key in the recipe",
        "generate:\n  teacher:\n    api_key: sk-1\n",
        "recipe.generate.teacher.api_key",
        "NAME of an environment",
    ),
    (
        "script without scripted",
        "generate:\n  teacher:\n    script: a.jsonl\n",
        "recipe.generate.teacher",
        "go together",
    ),
]


@pytest.mark.parametrize(("what", "extra", "expected", "hint"), BAD, ids=[row[0] for row in BAD])
def test_a_wrong_key_or_value_is_explained(tmp_path: Path, what: str, extra: str, expected: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + extra))
    assert expected in str(caught.value)
    assert hint in f"{caught.value} {caught.value.hint}"


WHOLE = [
    ("no yaml", "name: [", "this is not YAML", "recipe.yaml:"),
    ("empty", "", "found nothing", "recipe.yaml"),
    ("a list", "- a\n- b\n", "found list", "recipe.yaml"),
    ("missing model", "name: a\ningest:\n  files: x\n", "is missing", "recipe.base_model"),
    ("bad name", GOOD.replace("desk", "a/b"), "expected letters, digits", "recipe.name"),
    ("a date that is none", GOOD + "description: 2026-13-45\n", "a value cannot be read", "recipe.yaml"),
    ("a list in itself", GOOD + "description: &x [*x]\n", "holds itself", "recipe.yaml"),
    ("nothing to learn from", "name: a\nbase_model: m\n", "nothing to learn from", "ingest.files"),
    ("double key", GOOD + "name: other\n", "stands twice, first in line 1", "recipe.yaml:5"),
    (
        "distil without a task",
        GOOD + "generate:\n  generator: distill\n  teacher: {kind: local}\n",
        "ingest.task",
        "missing",
    ),
]


@pytest.mark.parametrize(("what", "text", "expected", "also"), WHOLE, ids=[row[0] for row in WHOLE])
def test_a_recipe_that_is_wrong_as_a_whole_is_explained(
    tmp_path: Path, what: str, text: str, expected: str, also: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert expected in str(caught.value)
    assert also in str(caught.value)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("train.lora_rank=0", "recipe.train.lora_rank (--set)"),
        ("train={lora_rank: 0}", "recipe.train.lora_rank (--set)"),
        ("train.num_epochs=2", "recipe.train.lora_rank (recipe.yaml:6)"),
    ],
)
def test_a_wrong_value_is_placed_where_it_was_given(tmp_path: Path, override: str, where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + "train:\n  lora_rank: 0\n"), [override])
    assert caught.value.where == where


def test_several_problems_are_listed_together(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + "train:\n  lora_rank: 0\n  epochs: 3\n"))
    assert "2 problems" in str(caught.value)
    assert "num_epochs" in str(caught.value)


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert "tunesmith new" in str(caught.value.hint)


@pytest.mark.parametrize("override", ["train.num_epochs", "=3", "name.x=1", "train..x=1"])
def test_a_malformed_override_is_explained(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD), [override])
    assert "--set" in str(caught.value)


def test_a_mapping_is_checked_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lora_rank"):
        resolve_mapping(
            {"name": "a", "base_model": "m", "ingest": {"files": ["x"]}, "train": {"lora_rank": -1}}, folder=tmp_path
        )


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "num_epochs", ".inf"),
        ("train", "num_epochs", "1e300"),
        ("train", "lora_alpha", ".inf"),
        ("train", "learning_rate", "-1"),
        ("train", "learning_rate", ".nan"),
        ("train", "lora_rank", "100000000"),
        ("train", "rng_seed", "-5"),
        ("curate", "rng_seed", "12345678901234567890123"),
    ],
)
def test_numbers_no_stage_could_use_are_refused_before_it(tmp_path: Path, section: str, key: str, value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + f"{section}:\n  {key}: {value}\n"))
    assert f"recipe.{section}.{key}" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "secret"),
    [
        ("api_key_env", "abcdef0123456789abcdef0123456789"),
        ("api_key_env", "sk-proj-abc123"),
        ("base_url", "http://user:hunter2@127.0.0.1:8000/v1"),
        ("base_url", "http://127.0.0.1:8000/v1?key=hunter2"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(tmp_path: Path, field: str, secret: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + f"generate:\n  teacher:\n    {field}: {secret}\n"))
    assert f"teacher.{field}" in str(caught.value)
    assert secret not in str(caught.value) and "hunter2" not in str(caught.value)


def test_a_usual_variable_name_is_accepted(tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "key", "MY_TEACHERS_KEY_2", "AZURE_OPENAI_4O_MINI_KEY"):
        found = load_recipe(write(tmp_path, GOOD + f"generate:\n  teacher:\n    api_key_env: {name}\n")).recipe
        assert found.generate is not None and found.generate.teacher.api_key_env == name


def test_a_model_folder_is_relative_to_the_recipe_like_every_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    found = load_recipe(write(tmp_path, GOOD.replace("smollm2-135m", "models/mine")))
    assert found.recipe.base_model.name == str((tmp_path / "models" / "mine").resolve())
    assert load_recipe(write(tmp_path, GOOD)).recipe.base_model.name == "smollm2-135m"
