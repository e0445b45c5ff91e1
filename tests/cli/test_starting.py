"""`tunesmith new` writes what `tunesmith plan` accepts, and replaces nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunesmith.cli.starting import new_recipe, recipe_name
from tunesmith.errors import RecipeError
from tunesmith.resolve import load_recipe


@pytest.mark.parametrize(
    ("folder", "name"),
    [("desk ü", "desk-u"), ("客服", "my-model"), ("a" * 80, "a" * 64), ("-x.", "x"), ("My_desk.2", "My_desk.2")],
)
def test_whatever_the_folder_is_called_the_recipe_can_be_loaded(tmp_path: Path, folder: str, name: str) -> None:
    new_recipe(tmp_path / folder, data=None, model=None, task=None)
    assert load_recipe(tmp_path / folder).recipe.name == name


def test_a_name_cut_to_its_length_does_not_end_in_a_dash() -> None:
    assert recipe_name("a" * 63 + " b") == "a" * 63


def test_the_command_to_go_on_with_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my desk"
    new_recipe(folder, data=None, model=None, task=None)
    assert f"tunesmith plan '{folder}' && tunesmith run '{folder}'" in capsys.readouterr().out


def test_examples_called_like_the_recipe_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    data = tmp_path / "recipe.yaml"
    data.write_text("mine")
    with pytest.raises(RecipeError, match=re.escape("cannot be called recipe.yaml")):
        new_recipe(tmp_path / "rn", data=data, model=None, task=None)
    assert not (tmp_path / "rn").exists()


def test_files_that_are_there_are_kept(tmp_path: Path) -> None:
    mine, other = tmp_path / "desk" / "a.jsonl", tmp_path / "a.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    other.write_text("other")
    with pytest.raises(RecipeError, match="another file of this name"):
        new_recipe(mine.parent, data=other, model=None, task=None)
    new_recipe(mine.parent, data=mine, model=None, task=None)
    assert mine.read_text() == "mine"
    assert load_recipe(mine.parent).recipe.ingest.files == ("a.jsonl",)


def test_examples_that_stand_there_are_not_replaced_by_the_two_of_ours(tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text("mine")
    new_recipe(tmp_path, data=None, model=None, task=None)
    assert (tmp_path / "examples.jsonl").read_text() == "mine"


def test_a_model_folder_named_from_here_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    new_recipe(tmp_path / "desk", data=None, model="./mine", task=None)
    assert load_recipe(tmp_path / "desk").recipe.base_model.name == str(tmp_path / "mine")
