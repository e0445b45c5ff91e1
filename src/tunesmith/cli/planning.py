"""`tunesmith plan`: what will run, what is cached, and an estimate of tokens, memory, time and cost. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.terminal import duration
from tunesmith.generating.estimate import estimate as estimate_generation
from tunesmith.model.catalog import built_in_models
from tunesmith.pipeline import Plan, plan
from tunesmith.resolve import ResolvedRecipe, load_recipe
from tunesmith.store import Store, default_root
from tunesmith.teachers.prices import resolve_price
from tunesmith.training.estimate import estimate_training

BYTES_PER_TOKEN = 4.0
"""Bytes of a data file per token of it, JSON punctuation included; replaced by counts once the rows are tokenised."""


@dataclass(frozen=True)
class Size:
    """How much there is to learn. `known` tells counts from guesses."""

    num_rows: int
    num_tokens: int
    num_parameters: int | None
    known: bool


def show_plan(path: Path, overrides: Sequence[str], root: Path | None) -> None:
    """Print the plan of a recipe."""
    console = Console()
    resolved = load_recipe(path, overrides)
    planned = plan(resolved, Store(root or default_root()))
    size = _measure(planned)
    table = Table(box=None, header_style="bold")
    for column in ("stage", "status", "expected"):
        table.add_column(column, overflow="fold")
    for stage in planned.stages:
        colour = {"cached": "green", "resume": "yellow", "run": "default"}[stage.status]
        expected = "" if stage.status == "cached" else _expect(stage.spec.name, resolved, size)
        table.add_row(stage.spec.name, f"[{colour}]{stage.status}[/]", escape(expected))
    console.print(table)
    if not size.known:
        console.print("sizes are guessed from the files until the rows are tokenised", style="dim")


def _measure(planned: Plan) -> Size:
    made = {stage.spec.name: stage.artifact for stage in planned.stages if stage.artifact is not None}
    recipe = planned.resolved.recipe
    if "base_model" in made:
        num_parameters = made["base_model"].facts["num_parameters"]
    else:
        built_in = built_in_models().get(recipe.base_model.name)
        num_parameters = built_in.num_parameters if built_in else None
    if "tokenize" in made:
        facts = made["tokenize"].facts
        return Size(facts["num_samples"], facts["num_tokens"], num_parameters, known=True)
    num_rows, num_bytes = 0, 0
    for name in recipe.ingest.files:
        place = planned.resolved.folder / name
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            num_bytes += file.stat().st_size
            num_rows += sum(chunk.count(b"\n") for chunk in _chunks(file))
    prompt_tokens = len(recipe.ingest.system_prompt or "") / BYTES_PER_TOKEN
    tokens = num_bytes / BYTES_PER_TOKEN + num_rows * prompt_tokens
    share = 1 - recipe.ingest.test_fraction
    if recipe.generate is not None:
        rows = recipe.generate.num_rows
        tokens += rows * (tokens / num_rows if num_rows else 150)
        num_rows += rows
    return Size(round(num_rows * share), round(tokens * share), num_parameters, known=False)


def _chunks(path: Path) -> Sequence[bytes]:
    with path.open("rb") as stream:
        return list(iter(lambda: stream.read(1 << 20), b""))


def _expect(stage: str, resolved: ResolvedRecipe, size: Size) -> str:
    recipe = resolved.recipe
    if stage == "generate" and recipe.generate is not None:
        seeds = size.num_rows
        price = resolve_price(recipe.generate.teacher, where="recipe.generate.teacher")
        guess = estimate_generation(recipe.generate, seeds, size.num_tokens / seeds if seeds else 0, price)
        tokens = guess["prompt_tokens"] + guess["completion_tokens"]
        cap = f", cap ${recipe.generate.budget_usd:,.2f}" if recipe.generate.budget_usd is not None else ""
        return f"{guess['requests']:,} requests, {tokens:,} tokens, about ${guess['usd']:,.2f}{cap}"
    if stage == "base_model":
        built_in = built_in_models().get(recipe.base_model.name)
        return f"{built_in.download_bytes / 1e6:,.0f} MB to fetch, once" if built_in else "local files or hub"
    if stage == "tokenize":
        return f"about {size.num_tokens:,} tokens in {size.num_rows:,} rows"
    if stage == "train" and size.num_parameters:
        guess = estimate_training(
            num_tokens=size.num_tokens,
            num_epochs=recipe.train.num_epochs,
            num_parameters=size.num_parameters,
            method=recipe.train.method,
        )
        seen = size.num_tokens * recipe.train.num_epochs
        return (
            f"{seen:,.0f} tokens, about {guess['memory_bytes'] / 1e9:.1f} GB, "
            f"about {duration(guess['seconds'])} on two CPU cores"
        )
    return ""
