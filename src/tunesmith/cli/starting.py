"""`tunesmith new`: a recipe to start from. What it writes, `tunesmith plan` accepts; nothing that is there is replaced."""

from __future__ import annotations

import re
import shlex
import shutil
import unicodedata
from pathlib import Path

import yaml
from rich.console import Console

from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe
from tunesmith.resolve import resolve_mapping

RECIPE_FILE = "recipe.yaml"


def new_recipe(folder: Path, *, data: Path | None, model: str | None, task: str | None) -> None:
    """Make a folder with a recipe, and the examples copied beside it. RecipeError, and nothing made, where it cannot."""
    recipe_path = folder / RECIPE_FILE
    if recipe_path.exists():
        raise RecipeError("there is a recipe already", where=str(recipe_path), hint="choose another folder")
    examples = folder / (data.name if data else "examples.jsonl")
    if data is not None:
        _check_data(data, examples)
    name = recipe_name(folder.resolve().name)
    ingest: dict[str, object] = {"task": task} if task else {}
    recipe = {
        "name": name,
        "base_model": _model_name(model),
        "ingest": {**ingest, "files": [examples.name], "test_fraction": 0.2},
        "train": {"method": "lora", "num_epochs": 4},
        "export": {"formats": ["safetensors", "gguf-q8_0"]},
    }
    resolve_mapping(recipe, folder=folder)
    folder.mkdir(parents=True, exist_ok=True)
    put = _put_examples(data, examples)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    recipe_path.write_text(f"# Every key there is: tunesmith reference\n{text}", encoding="utf-8")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {recipe_path} (name: {name})")
    if put:
        console.print(put)
    quoted = shlex.quote(str(folder))
    console.print(f"then: tunesmith plan {quoted} && tunesmith run {quoted}")


def _model_name(model: str | None) -> str:
    """What the recipe says: a folder or file named from here stays the same one when read from the recipe's folder."""
    if model is None:
        return "smollm2-135m"
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def recipe_name(text: str) -> str:
    """The nearest name that a recipe may have: accents dropped, other characters to dashes, cut to its length."""
    pattern = str(Recipe.model_json_schema()["properties"]["name"]["pattern"])
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    found = re.match(pattern.removesuffix("$"), plain)  # without its end the pattern takes as much as is allowed
    return found[0].rstrip("-._") if found else "my-model"


def _check_data(data: Path, copy: Path) -> None:
    if not data.is_file():
        raise RecipeError("there is no such file of examples", where=str(data))
    if data.name.lower() == RECIPE_FILE:
        raise RecipeError(
            f"the examples cannot be called {RECIPE_FILE}: the recipe goes there",
            where=str(data),
            hint="rename the file",
        )
    if copy.exists() and not copy.samefile(data):
        raise RecipeError(
            "there is another file of this name already", where=str(copy), hint="choose another folder, or rename one"
        )


def _put_examples(data: Path | None, examples: Path) -> str | None:
    """Copy the data, or write two rows to show the form. Returns what to say about it."""
    if data is not None:
        if not examples.exists():
            shutil.copyfile(data, examples)
        return None
    if examples.exists():
        return f"takes the examples that are in {examples}"
    examples.write_text(_EXAMPLES, encoding="utf-8")
    return f"put your examples into {examples} (two stand there to show the form)"


_EXAMPLES = """\
{"messages": [{"role": "user", "content": "What are your opening hours?"}, {"role": "assistant", "content": "We are open from 9 to 18 on weekdays."}]}
{"messages": [{"role": "user", "content": "Can I bring a dog?"}, {"role": "assistant", "content": "Dogs are welcome on a lead."}]}
"""
