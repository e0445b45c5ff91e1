"""`tunesmith data diff`: two data sets side by side, on the terminal, as one HTML page, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tunesmith.cli.data_input import find_rows
from tunesmith.cli.data_stats import check_page, open_counter, progress, write_page
from tunesmith.data.statistics.changes import word_changes
from tunesmith.data.statistics.difference import Difference, Shown, find_difference
from tunesmith.data.statistics.side_by_side import Pairs, equal_tables, lengths, row_counts, tables
from tunesmith.data.statistics.survey import Survey, SurveyOptions
from tunesmith.data.statistics.texts import one_line, visible
from tunesmith.recipe import Runtime

_STYLES = {"same": "default", "removed": "red strike", "added": "green", "left_out": "dim"}
_LONGEST = 1200
_NUM_NAMES = 1000  # compared by name; rarer ones of a table are counted together


def show_diff(
    first: str,
    second: str,
    *,
    root: Path | None,
    form: str,
    model: str | None,
    num_examples: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """What the command prints and writes."""
    check_page(html)
    before, after = find_rows(first, root, form), find_rows(second, root, form)
    threads = Runtime().usable_threads
    options = SurveyOptions(
        max_rows=0, num_clusters=1, num_names=_NUM_NAMES, rng_seed=0, num_threads=threads, closely=False
    )
    with progress(before, after) as on_rows:
        found = find_difference(
            before.rows,
            after.rows,
            names=(before.name, after.name),
            options=options,
            num_examples=num_examples,
            count_tokens=open_counter(model),
            on_rows=on_rows,
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=True, allow_nan=False))
    else:
        show_difference(Console(highlight=False), found)
    if html is not None:
        from tunesmith.data.statistics.difference_page import difference_page

        write_page(html, difference_page(found), quiet=as_json)


def show_difference(console: Console, found: Difference) -> None:
    """Print everything."""
    names = found.before.survey.name, found.after.survey.name
    console.print(Text.assemble(("A  ", "bold red"), one_line(names[0], 200)))
    console.print(Text.assemble(("B  ", "bold green"), one_line(names[1], 200)))
    _section(console, "Rows", _rows(found))
    if len(found.fates) > 1:
        _section(console, "Where they ended", _two_columns(found.fates))
    if found.moves:
        _section(console, "Moved", _moves(found))
    if found.changed_fields:
        changed = Table.grid(padding=(0, 3))
        for count in found.changed_fields:
            changed.add_row(count.name, Text(f"{count.num:,}", justify="right"))
        _section(console, "Changed beside the text, in rows of both", changed)
    _section(console, "Lengths", _lengths(found.before.survey, found.after.survey))
    for title, pairs in tables(found.before.survey, found.after.survey):
        _section(console, title.capitalize(), _two_columns(pairs))
    equal = equal_tables(found.before.survey, found.after.survey)
    if equal:
        console.print(Text(f"\nthe same in both: {', '.join(equal)}", style="dim"))
    if found.other_reply:
        _section(console, "Same prompt, other reply", Group(*_changes(found)))
    for title, rows, style in (("Only in A", found.only_before, "red"), ("Only in B", found.only_after, "green")):
        if rows:
            _section(console, title, Group(*(_row(row, style) for row in rows)))


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print(Text(f"\n{title}", style="bold cyan"))
    console.print(Padding(content, (0, 0, 0, 2)))


def _rows(found: Difference) -> Table:
    table = _headed()
    for what, a, b in row_counts(found):
        style = "bold" if what.startswith("all") else ""
        table.add_row(Text(what, style=style), Text(f"{a:,}", style=style), Text(f"{b:,}", style=style), "")
    return table


def _headed() -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column("")
    for name, style in (("A", "red"), ("B", "green"), ("", "dim")):
        table.add_column(Text(name, style=style), justify="right")
    return table


def _two_columns(pairs: Pairs) -> Table:
    table = _headed()
    for name, (a, b) in pairs.items():
        table.add_row(Text(one_line(name, 60)), f"{a:,}", f"{b:,}", f"{b - a:+,}" if a != b else "")
    return table


def _moves(found: Difference) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    for move in found.moves:
        table.add_row(
            Text(f"{move.num:,}", justify="right"), Text(one_line(move.before, 60)), "→", Text(one_line(move.after, 60))
        )
    examples = [
        Text.assemble(
            (f"{one_line(pair.before.fate, 40)} → {one_line(pair.after.fate, 40)}  ", "cyan"),
            (one_line(pair.before.prompt, 90), "dim"),
        )
        for pair in found.moved
    ]
    return Group(table, *examples)


def _lengths(a: Survey, b: Survey) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("", "", ""):
        table.add_column(name)
    for name in ("min", "median", "mean", "90 %", "99 %", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for part, unit, sides in lengths(a, b):
        labels = (part, unit)
        for name, style, each in zip("AB", ("red", "green"), sides, strict=True):
            if each is not None:
                numbers = (each.min, each.median, each.mean, each.p90, each.p99, each.max)
                cells = [f"{number:,.1f}" if isinstance(number, float) else f"{number:,}" for number in numbers]
                table.add_row(*labels, Text(name, style=style), *cells)
                labels = ("", "")
    return table


def _changes(found: Difference) -> Iterator[Text]:
    for pair in found.other_reply:
        yield Text(one_line(pair.before.prompt, 100), style="bold")
        text = Text()
        for piece in word_changes(pair.before.reply[:_LONGEST], pair.after.reply[:_LONGEST]):
            text.append(visible(piece.text), style=_STYLES[piece.kind])
        yield text.append("\n")


def _row(row: Shown, style: str) -> Text:
    text = Text(one_line(row.prompt or row.reply, 90), style=style)
    return text.append(
        f"  {one_line(row.where, 40)}" + (f" · {row.fate}" if row.fate != "undecided" else ""), style="dim"
    )
