"""`tunesmith data unique`: the first row of each value of a field, and what went, counted."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.errors import RecipeError

_WORDS = {"excluded_exact": "repeat an earlier {field}", "excluded_bad_row": "have no {field}"}


def write_unique(source: Path, target: Path, field: str, *, force: bool) -> None:
    """Filter the file and say what became of its rows."""
    from tunesmith.data.unique import excluded_path, keep_unique

    if not source.is_file():
        raise RecipeError("there is no such file", where=str(source), hint="name a file of JSON lines")
    same = target.exists() and target.resolve() == source.resolve()
    if target.exists() and (not force or same):
        hint = "a file cannot be filtered onto itself" if same else "choose another name, or add --force"
        raise RecipeError("the file to write is there already", where=str(target), hint=hint)
    counts = keep_unique(source, field, target)
    console = Console(highlight=False, soft_wrap=True)
    removed = counts["rows_in"] - counts["kept"]
    console.print(
        f"{counts['rows_in']:,} rows: [bold]{counts['kept']:,}[/] kept, {removed:,} removed → {escape(str(target))}"
    )
    if removed:
        why = ", ".join(
            f"{counts[name]:,} {text.format(field=field)}" for name, text in _WORDS.items() if name in counts
        )
        console.print(f"  [yellow]removed[/]: {escape(why)} → {escape(str(excluded_path(target)))}")
