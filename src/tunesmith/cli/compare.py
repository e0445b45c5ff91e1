"""`tunesmith compare`: runs side by side, one table for each set of test rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from tunesmith.cli.fitting import open_console, print_block, whole_table, width_of
from tunesmith.cli.watch import find_runs
from tunesmith.errors import RecipeError

if TYPE_CHECKING:
    from tunesmith.judging.run_comparison import TestSet


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
    from tunesmith.judging import run_comparison, run_table

    if as_json and markdown:
        raise RecipeError("--json and --markdown cannot both be printed", hint="choose one")
    contestants = [each for run in find_runs(runs, root) for each in run_comparison.read_contestants(run)]
    groups = run_comparison.group_by_test_set(contestants)
    asked = list(dict.fromkeys(metric)) if metric else [None]
    shown = {group.digest: [group.metric(name) for name in asked] for group in groups}
    if as_json:
        print(json.dumps(run_table.as_json(groups, shown), ensure_ascii=False, allow_nan=False))
        return
    console, width = open_console()
    for place, group in enumerate(groups):
        if place:
            print()
        if markdown:
            print(f"{_heading(group)}\n\n{run_table.as_markdown(run_table.table_rows(group, shown[group.digest]))}")
        else:
            _print_group(console, group, shown[group.digest], width)
    if len(groups) > 1:
        said = f"These runs were evaluated on {len(groups)} different sets of test rows: scores of different tables do not compare."
        print(f"\n{said}") if markdown else console.print(f"\n{said}", style="yellow", soft_wrap=False)


def _heading(group: TestSet) -> str:
    return f"{group.num_rows:,} test rows, {group.digest}"


def _print_group(console: Console, group: TestSet, metrics: list[str], width: int | None) -> None:
    """The first form that fits: the whole table; one that repeats nothing and says units once; a block for each line.
    No cell is ever cut or folded."""
    from tunesmith.judging.run_table import NUM_WORDS, table_rows, without_repeats

    rows = table_rows(group, metrics)
    heading = [_heading(group)]
    num_words = NUM_WORDS
    if width is not None and width_of(rows) > width:
        rows, said = without_repeats(table_rows(group, metrics, brief=True))
        num_words -= len(said)
        rows[0] = [_in_two_lines(cell) if place >= num_words else cell for place, cell in enumerate(rows[0])]
        heading += [f"{name} {text}" for name, text in said]
        if width_of(rows) > width:
            _print_blocks(console, group, table_rows(group, metrics))
            return
    console.print(escape(" · ".join(heading)), style="italic", soft_wrap=width is None)
    console.print(whole_table(rows, [place >= num_words for place in range(len(rows[0]))]))


def _print_blocks(console: Console, group: TestSet, rows: list[list[str]]) -> None:
    console.print(escape(_heading(group)), style="italic", soft_wrap=False)
    for row in rows[1:]:
        run, model, trained, *numbers = row
        console.print()
        pairs = [pair for pair in zip(rows[0][3:], numbers, strict=True) if pair[1] not in ("", "-")]
        print_block(console, (run, model, trained), pairs)


def _in_two_lines(heading: str) -> str:
    """A heading broken at the space that leaves the shortest longer line."""
    words = heading.split(" ")
    cuts = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    return "\n".join(min(cuts, key=lambda cut: max(map(cell_len, cut)))) if cuts else heading
