"""Tables on terminals of any width: how wide one is, one whose cells are never cut, and lines that say the same one by one.

Owns widths and their measure. Refuses to know what stands in a cell.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BETWEEN = 2  # spaces between columns
_ANY_WIDTH = 10_000  # of a file


def open_console() -> tuple[Console, int | None]:
    """A console for tables that are made to fit, and its width; None: whatever there is to print may be as wide as it is."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console, console.width
    console.width = _ANY_WIDTH
    return console, None


def width_of(rows: Sequence[Sequence[str]]) -> int:
    """Of the table, with no cell folded."""
    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def whole_table(rows: Sequence[Sequence[str]], is_number: Sequence[bool]) -> Table:
    """Headings and lines as plain text, no cell folded; columns of numbers are set right."""
    table = Table(box=None, header_style="bold", padding=(0, _BETWEEN, 0, 0), pad_edge=False)
    for cell, numbers in zip(rows[0], is_number, strict=True):
        table.add_column(escape(cell), justify="right" if numbers else "left", no_wrap=True, vertical="bottom")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def print_block(console: Console, title: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    """What one line of a table says, below each other; a long text goes on below its beginning."""
    first, *rest = map(escape, title)
    console.print("  ".join([f"[bold]{first}[/]", *rest]), soft_wrap=False)
    lines = Table.grid(padding=(0, 2))
    for _ in range(3):
        lines.add_column()
    for name, text in pairs:
        lines.add_row("", f"[dim]{escape(name)}[/]", escape(text))
    console.print(lines, soft_wrap=False)
