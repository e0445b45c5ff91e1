"""`tunesmith data head` and `tunesmith data sample`: rows to read, as conversations or as JSON lines."""

from __future__ import annotations

import heapq
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from tunesmith.cli.data_input import find_rows
from tunesmith.errors import RecipeError
from tunesmith.types import Example, Excluded, Message, Preference

Row = Example | Excluded
_COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
_WHERE_HINT = (
    "write --where FIELD=VALUE, with * for anything: source=*.csv, split=test, reason=exact, or a field of metadata"
)


def show_head(
    reference: str, *, root: Path | None, form: str, num_rows: int, where: Sequence[str], width: int, as_json: bool
) -> None:
    """The first rows, in their order."""
    rows = selected(find_rows(reference, root, form).rows(), where)
    _show(list(islice(rows, num_rows)), width=width, as_json=as_json, where=where, reference=reference)


def show_sample(
    reference: str,
    *,
    root: Path | None,
    form: str,
    num_rows: int,
    rng_seed: int,
    where: Sequence[str],
    width: int,
    as_json: bool,
) -> None:
    """Rows drawn at random, in their order; the same ones for the same seed."""
    rows = drawn(selected(find_rows(reference, root, form).rows(), where), num_rows, rng_seed)
    _show(rows, width=width, as_json=as_json, where=where, reference=reference)


def drawn(rows: Iterable[Row], size: int, rng_seed: int) -> list[Row]:
    """Every row gets the digest of (seed, its number) and the lowest stay: memory holds `size` rows."""

    def keyed() -> Iterator[tuple[bytes, int, Row]]:
        for number, row in enumerate(rows):
            yield blake2b(f"{rng_seed}\0{number}".encode(), digest_size=8).digest(), number, row

    chosen = heapq.nsmallest(size, keyed(), key=lambda entry: entry[:2])
    return [row for _, _, row in sorted(chosen, key=lambda entry: entry[1])]


def selected(rows: Iterable[Row], where: Sequence[str]) -> Iterator[Row]:
    """The rows for which all of `where` holds. Rows that were left out come only where their reason is asked for."""
    tests = [_test(each) for each in where]
    excluded = any(name == "reason" for name, _ in tests)
    for row in rows:
        if isinstance(row, Excluded) == excluded and all(pattern.match(_value(row, name)) for name, pattern in tests):
            yield row


def _test(where: str) -> tuple[str, re.Pattern[str]]:
    name, equals, value = where.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"{where!r} selects nothing", where="--where", hint=_WHERE_HINT)
    return name.strip().removeprefix("metadata."), re.compile(translate(value.strip()), re.IGNORECASE)


def _value(row: Row, name: str) -> str:
    if isinstance(row, Excluded):
        if name in ("reason", "detail", "where", "field"):
            return str(getattr(row, name) or "")
        if row.conversation is None:
            return ""
        row = row.conversation
    if name == "source":
        from tunesmith.data.statistics.counts import source_of

        return source_of(row)
    if name == "model":
        from tunesmith.data.statistics.counts import model_of

        return model_of(row)
    if name in ("id", "origin", "split", "licence"):
        return str(getattr(row, name) or "")
    value = row.metadata.get(name, "")
    return value if isinstance(value, str) else str(value)


def _show(rows: Sequence[Row], *, width: int, as_json: bool, where: Sequence[str], reference: str) -> None:
    if as_json:
        from tunesmith.text.jsonl import dump_record

        for row in rows:
            sys.stdout.write(dump_record(row).decode())
        return
    console = Console(highlight=False)
    if not rows:
        wanted = f" with {' and '.join(where)}" if where else ""
        said = Text(f"no row of {reference}{wanted}", style="yellow")
        if not any(each.startswith("reason") for each in where):
            said.append("; those that were left out: --where 'reason=*'", style="dim")
        console.print(said)
        return
    for row in rows:
        render_row(console, row, width)


def render_row(console: Console, row: Row, width: int) -> None:
    """One row as a conversation, its facts in a line above. width: characters of a message that are shown."""
    from tunesmith.data.statistics.texts import one_line

    console.print(Rule(Text(one_line(_facts(row), max(20, console.width - 8))), align="left", style="dim"))
    if isinstance(row, Excluded):
        console.print(
            Text("left out: ", style="bold red").append(one_line(f"{row.reason}: {row.detail}", 500), style="not bold")
        )
        if row.conversation is None:
            console.print(Padding(_text(_plain(row.raw), width), (0, 0, 0, 2)))
            return
        row = row.conversation
    for title, colour, text in _parts(row):
        console.print(Text(title, style=f"bold {colour}"))
        console.print(Padding(_text(text, width), (0, 0, 0, 2)))
    if row.metadata:
        console.print(Text(one_line(_plain(row.metadata), 300), style="dim"))


def _facts(row: Row) -> str:
    if isinstance(row, Excluded):
        return row.where or "row"
    return " · ".join(part for part in (row.id, row.split or "", row.source, row.licence or "") if part)


def _parts(row: Example) -> Iterator[tuple[str, str, str]]:
    from tunesmith.data.statistics.texts import messages_of

    for message in messages_of(row):
        if message.reasoning:
            yield f"{message.role}, thinking", "dim", message.reasoning
        yield _title(message), _COLOURS[message.role], message.content
        for call in message.tool_calls or []:
            yield f"{message.role} calls", "yellow", _plain(call)
    if isinstance(row, Preference):
        yield "rejected answer", "red", row.rejected


def _title(message: Message) -> str:
    from tunesmith.data.statistics.texts import one_line

    return f"{message.role} {one_line(message.name, 60)}" if message.name else message.role


def _text(text: str, width: int) -> Text:
    from tunesmith.data.statistics.texts import shortened, visible

    shown, left_out = shortened(text, width)
    found = Text(visible(shown.strip("\n")))
    return found.append(f" … {left_out:,} more characters", style="dim") if left_out else found


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
