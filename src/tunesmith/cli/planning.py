"""`tunesmith plan`: what will run, what is cached, and an estimate of tokens, memory, time and cost. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.counting import Counted, count_examples, tokens_of
from tunesmith.cli.terminal import duration
from tunesmith.errors import TunesmithError
from tunesmith.generating.estimate import estimate as estimate_generation
from tunesmith.model.catalog import ModelListing, list_models
from tunesmith.pipeline import Plan, check_ahead, plan
from tunesmith.recipe import BaseModelSection, Train, split_sampled
from tunesmith.resolve import ResolvedRecipe, load_recipe
from tunesmith.store import Store, default_root
from tunesmith.teachers.prices import resolve_price
from tunesmith.training.estimate import estimate_training

TOKENS_PER_ROW = 150
"""Of a generated row, where there is no example to measure."""
TOKENS_PER_PACK = 2048
"""What `tokenize.pack_length: auto` comes to for usual data; replaced by the real figure once the rows are tokenised."""


@dataclass(frozen=True)
class Size:
    """How much there is to learn. `known` tells counts from guesses; `counted` is what the example files hold."""

    num_rows: int
    num_tokens: int
    num_parameters: int | None
    tokens_per_pack: float
    known: bool
    counted: Counted | None = None


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
    try:
        check_ahead(planned)
    except TunesmithError as refusal:
        hint = f" ({refusal.hint})" if refusal.hint else ""
        console.print(f"[red]`run` refuses this[/]: {escape(f'{refusal}{hint}')}", soft_wrap=True)


def _measure(planned: Plan) -> Size:
    made = {stage.spec.name: stage.artifact for stage in planned.stages if stage.artifact is not None}
    recipe = planned.resolved.recipe
    if "base_model" in made:
        num_parameters = made["base_model"].facts["num_parameters"]
    else:
        listing = _listing(recipe.base_model)
        num_parameters = listing.num_parameters if listing else None
    if "tokenize" in made:
        facts = made["tokenize"].facts
        per_pack = facts["num_tokens"] / max(1, facts["num_packs"])
        return Size(facts["num_samples"], facts["num_tokens"], num_parameters, per_pack, known=True)
    counted = Counted()
    for name in recipe.ingest.files:
        file, size = split_sampled(name)
        counted += count_examples(planned.resolved.folder / Path(file).expanduser()).at_most(size)
    num_rows = counted.num_rows
    tokens = counted.num_tokens + num_rows * tokens_of(recipe.ingest.system_prompt or "")
    share = (1 - recipe.ingest.test_fraction) * (1 - recipe.curate.test_fraction)
    if recipe.generate is not None:
        rows = recipe.generate.num_rows
        tokens += rows * (tokens / num_rows if num_rows else TOKENS_PER_ROW)
        num_rows += rows
    pack_length = recipe.tokenize.pack_length
    per_pack = TOKENS_PER_PACK if pack_length == "auto" else pack_length
    return Size(round(num_rows * share), round(tokens * share), num_parameters, per_pack, known=False, counted=counted)


def _listing(section: BaseModelSection) -> ModelListing | None:
    """What the catalog says of the model; None for one it does not know, or another revision of one it does."""
    if section.revision is not None:
        return None
    return next((listing for listing in list_models() if listing.name == section.name), None)


def _expect(stage: str, resolved: ResolvedRecipe, size: Size) -> str:
    recipe = resolved.recipe
    if stage == "generate" and recipe.generate is not None:
        seeds = size.num_rows
        price = resolve_price(
            recipe.generate.teacher, where="recipe.generate.teacher", batch=recipe.runtime.teacher_batch
        )
        guess = estimate_generation(recipe.generate, seeds, size.num_tokens / seeds if seeds else 0, price)
        tokens = guess["prompt_tokens"] + guess["completion_tokens"]
        cap = f", cap ${recipe.generate.budget_usd:,.2f}" if recipe.generate.budget_usd is not None else ""
        return f"{guess['requests']:,} requests, {tokens:,} tokens, about ${guess['usd']:,.2f}{cap}"
    if stage == "ingest" and size.counted is not None:
        about = "" if size.counted.exact else "about "
        unusable = f", {size.counted.num_rejected:,} more cannot be used" if size.counted.num_rejected else ""
        return f"{about}{size.counted.num_rows:,} rows{unusable}"
    if stage == "base_model":
        listing = _listing(recipe.base_model)
        if listing is None:
            return "local files or hub"
        return "at hand" if listing.at_hand else f"{listing.download_bytes / 1e6:,.0f} MB to fetch, once"
    if stage == "tokenize":
        return f"about {size.num_tokens:,} tokens in {size.num_rows:,} rows"
    if stage == "train" and size.num_parameters and size.num_tokens:
        num_epochs = _num_epochs(recipe.train, size)
        guess = estimate_training(
            num_tokens=size.num_tokens,
            num_epochs=num_epochs,
            num_parameters=size.num_parameters,
            method=recipe.train.method,
        )
        seen = size.num_tokens * num_epochs
        return (
            f"{seen:,.0f} tokens, about {guess['memory_bytes'] / 1e9:.1f} GB, "
            f"about {duration(guess['seconds'])} on two CPU cores"
        )
    return ""


def _num_epochs(section: Train, size: Size) -> float:
    """Passes over the data, where `max_steps` may end them before `num_epochs` does."""
    if section.max_steps is None:
        return section.num_epochs
    most_tokens = section.max_steps * section.global_batch_size * size.tokens_per_pack
    return min(section.num_epochs, most_tokens / size.num_tokens)
