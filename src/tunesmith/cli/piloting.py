"""`tunesmith run --pilot N`: ask for N rows, show them, and say what the full order will take. Its answers are kept, so
the full order asks only for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.terminal import TerminalSink, duration
from tunesmith.errors import RecipeError
from tunesmith.generating.pilot import Forecast, forecast, pace_of
from tunesmith.pipeline import execute
from tunesmith.resolve import load_recipe
from tunesmith.store import Store, default_root
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation

_SHOWN_CHARACTERS = 600


def run_pilot(path: Path, overrides: Sequence[str], root: Path | None, num_rows: int) -> None:
    """Generate `num_rows` rows of a recipe and print them with the forecast."""
    console = Console()
    full = load_recipe(path, overrides).recipe.generate
    if full is None:
        raise RecipeError("a pilot tries out generation, and there is no `generate` section", where="recipe.generate")
    pilot = load_recipe(path, [*overrides, f"generate.num_rows={min(num_rows, full.num_rows)}"])
    store = Store(root or default_root())
    with TerminalSink(console) as sink:
        run = execute(pilot, store, sink, "generate")
    artifact = run.artifact("generate")
    assert artifact is not None  # execute has just made it
    for number, row in enumerate(read_records(artifact.file("conversations.jsonl"), Conversation), 1):
        _show_row(console, number, row)
    manifest = artifact.manifest
    found = forecast(manifest.counts, manifest.facts, full.num_rows, pace_of(artifact.path))
    _show_forecast(console, found, manifest.counts, full.budget_usd)
    console.print(f"\n  [dim]rows and answers[/]  {escape(str(artifact.path))}", highlight=False, soft_wrap=True)
    console.print(f"  [dim]the full order[/]    tunesmith run {escape(str(path))}", highlight=False, soft_wrap=True)


def _show_row(console: Console, number: int, row: Conversation) -> None:
    console.print(f"\n[bold]row {number}[/]", highlight=False)
    for turn in row.messages:
        text = turn.content if len(turn.content) <= _SHOWN_CHARACTERS else turn.content[:_SHOWN_CHARACTERS] + " ..."
        console.print(f"  [cyan]{turn.role}[/] {escape(text)}", highlight=False)


def _show_forecast(console: Console, found: Forecast, counts: dict[str, int], budget_usd: float | None) -> None:
    table = Table(box=None, show_header=False)
    reasons = ", ".join(
        f"{name.removeprefix('rejected_')} {number}" for name, number in counts.items() if name.startswith("rejected_")
    )
    table.add_row("kept", f"{found.kept} of {found.parsed} rows ({found.accept_rate:.0%} of those that count)")
    table.add_row("rejected", reasons or "none")
    table.add_row(
        "requests", f"{found.requests_made:,}, of them {found.repaired:,} a second try at an answer of no use"
    )
    table.add_row("per kept row", f"{found.tokens_per_row:,.0f} tokens, ${found.usd_per_row:,.6f}")
    cap = f" (cap ${budget_usd:,.2f})" if budget_usd is not None else ""
    table.add_row(
        f"{found.rows:,} rows", f"{found.requests:,} requests, {found.tokens:,} tokens, ${found.usd:,.4f}{cap}"
    )
    time = "not known" if found.seconds is None else f"about {duration(found.seconds)} at the pilot's pace"
    table.add_row("still to do", f"${found.usd_left:,.4f}, {time}")
    console.print()
    console.print(table)
