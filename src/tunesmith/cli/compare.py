"""`tunesmith compare`: runs side by side, one table for each set of test rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.watch import find_runs
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.judging.run_comparison import TestSet

_WORDS = 3  # columns before the numbers


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs (name, folder, `latest`).")],
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Score to show, may be repeated; none takes the strictest they share."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every metric.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables of Markdown.")] = False,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where runs are kept ($TUNESMITH_ROOT, else ./runs).")
    ] = None,
) -> None:
    """Model, score with its error, trainable parameters and hours per epoch of several runs."""
    from tunesmith.judging import run_comparison

    if as_json and markdown:
        raise RecipeError("--json and --markdown cannot both be printed", hint="choose one")
    contestants = [each for run in find_runs(runs, root) for each in run_comparison.read_contestants(run)]
    groups = run_comparison.group_by_test_set(contestants)
    shown = {group.digest: [group.metric(name) for name in metric or [None]] for group in groups}
    if as_json:
        print(json.dumps(run_comparison.as_json(groups, shown), ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False, soft_wrap=markdown)
    for place, group in enumerate(groups):
        rows = run_comparison.table_rows(group, shown[group.digest])
        if markdown:
            print(f"{'' if place == 0 else chr(10)}{_heading(group)}\n\n{run_comparison.as_markdown(rows)}")
        else:
            console.print(_table(group, rows))
    if len(groups) > 1:
        said = f"These runs were evaluated on {len(groups)} different sets of test rows: scores of different tables do not compare."
        print(f"\n{said}") if markdown else console.print(f"\n{said}", style="yellow")


def _heading(group: TestSet) -> str:
    return f"{group.num_rows:,} test rows, {group.digest}"


def _table(group: TestSet, rows: list[list[str]]) -> Table:
    table = Table(box=None, header_style="bold", title=_heading(group), title_justify="left")
    for place, heading in enumerate(rows[0]):
        if place < _WORDS:
            table.add_column(escape(heading), overflow="fold")
        else:  # a number is never cut in two
            table.add_column(escape(heading), justify="right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
