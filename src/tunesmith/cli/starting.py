"""`tunesmith new`: a recipe to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from tunesmith.errors import RecipeError


def new_recipe(folder: Path, *, data: Path | None, model: str | None, task: str | None) -> None:
    """Make a folder with a recipe, and the examples copied beside it."""
    recipe_path = folder / "recipe.yaml"
    if recipe_path.exists():
        raise RecipeError("there is a recipe already", where=str(recipe_path), hint="choose another folder")
    if data is not None and not data.is_file():
        raise RecipeError("there is no such file of examples", where=str(data))
    folder.mkdir(parents=True, exist_ok=True)
    file_name = data.name if data else "examples.jsonl"
    if data:
        shutil.copyfile(data, folder / file_name)
    else:
        (folder / file_name).write_text(_EXAMPLES, encoding="utf-8")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in folder.resolve().name).strip("-._") or "my-model"
    ingest: dict[str, object] = {"task": task} if task else {}
    recipe = {
        "name": name,
        "base_model": model or "smollm2-135m",
        "ingest": {**ingest, "files": [file_name], "test_fraction": 0.2},
        "train": {"method": "lora", "num_epochs": 4},
        "export": {"formats": ["safetensors", "gguf-q8_0"]},
    }
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    recipe_path.write_text(f"# Every key there is: tunesmith reference\n{text}", encoding="utf-8")
    console = Console()
    console.print(f"wrote {escape(str(recipe_path))}", highlight=False)
    if not data:
        console.print(f"put your examples into {escape(str(folder / file_name))} (two stand there to show the form)")
    console.print(f"then: tunesmith plan {escape(str(folder))} && tunesmith run {escape(str(folder))}", highlight=False)


_EXAMPLES = """\
{"messages": [{"role": "user", "content": "What are your opening hours?"}, {"role": "assistant", "content": "We are open from 9 to 18 on weekdays."}]}
{"messages": [{"role": "user", "content": "Can I bring a dog?"}, {"role": "assistant", "content": "Dogs are welcome on a lead."}]}
"""
