"""Examples into a file of a named form: alpaca, ShareGPT or OpenAI messages as JSON lines (one list where the file is
called .json), a CSV table, parquet. A file is what its ending says, or it is refused.

Written whole or not at all, row by row in constant memory. An example the form cannot hold goes to a file of its own
beside it, with the reason; parts it cannot hold are counted by name.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.data.writers import alpaca, openai_messages, sharegpt
from tunesmith.data.writers.cells import Tally, Unwritable
from tunesmith.errors import DataError, MissingExtra, RecipeError, nearest
from tunesmith.store import disk_error
from tunesmith.text.jsonl import RecordLog
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Preference

Row = dict[str, Any]
KindRow = tuple[type[Example], Row]

WRITERS: dict[str, Callable[[Example, Tally], Row]] = {
    "alpaca": alpaca.row,
    "sharegpt": sharegpt.row,
    "messages": openai_messages.row,
    "csv": alpaca.row,  # a table has one line per example, so the flat form
    "parquet": openai_messages.row,
}
_COLUMNS: dict[type[Example], tuple[str, ...]] = {
    Conversation: ("instruction", "input", "output", "system", "history"),
    Preference: ("instruction", "input", "chosen", "rejected", "score_chosen", "score_rejected", "system"),
    Labelled: ("instruction", "input", "output", "kto_tag", "system", "history"),
    Document: ("text",),
}
_COMMON = ("id", "split", "origin", "licence", "metadata")
_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
_OTHER_ENDINGS = (".csv", ".tsv", ".parquet", ".gz", ".zip")  # no other ending says what is in a file
_ROWS_PER_GROUP = 4096


@dataclass
class Written:
    """What became of the examples: num_written + num_excluded = all that were given."""

    num_written: int = 0
    num_excluded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of bad rows, and "cannot_hold"
    lost: Counter[str] = field(default_factory=Counter)  # parts that the form has no place for -> how often
    excluded_path: Path | None = None


def write_examples(examples: Iterable[Example | Excluded], path: Path, form: str) -> Written:
    """Write every example; bad rows and those the form cannot hold go to `<path>.excluded.jsonl` with their reason.

    Raises DataError for examples of different kinds in one file, RecipeError for an unknown form, StoreError where the disk
    is full. The file stands under its name only when it is whole.
    """
    if form not in WRITERS:
        close = nearest(form, WRITERS)
        raise RecipeError(
            f"there is no form to write named {form!r}",
            where="--to",
            hint=f"did you mean {close!r}?" if close else f"known: {', '.join(WRITERS)}",
        )
    write = _container(path, form)
    done = Written()
    log_path = path.with_name(f"{path.name}.excluded.jsonl")
    temporary = path.with_name(f".{path.name}.tmp")
    log_path.unlink(missing_ok=True)
    rows = _rows(examples, form, done, log_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary, rows)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, 0) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    done.excluded_path = log_path if done.num_excluded else None
    return done


def _container(path: Path, form: str) -> Callable[[Path, Iterator[KindRow]], None]:
    """What writes this form into a file of this name. RecipeError where the ending says another thing."""
    ending, by_ending = path.suffix.lower(), _BY_ENDING[form]
    if ending in by_ending:
        return by_ending[ending]
    if ending not in (*_JSON_ENDINGS, *_OTHER_ENDINGS):
        return next(iter(by_ending.values()))
    others = [f"`--to {name}`" for name, endings in _BY_ENDING.items() if ending in endings]
    raise RecipeError(
        f"the file is called {ending}, and {form} is not written so",
        where=str(path),
        hint=f"let it end in {' or '.join(by_ending)}" + (f", or write {' or '.join(others)}" if others else ""),
    )


def _rows(examples: Iterable[Example | Excluded], form: str, done: Written, log_path: Path) -> Iterator[KindRow]:
    """(kind, row) of each example that can be written; the others go to the log."""
    kind: type[Example] | None = None
    first = ""
    with _LateLog(log_path) as log:
        for example in examples:
            if isinstance(example, Excluded):
                log.exclude(example, done)
                continue
            if kind is None:
                kind, first = type(example), example.source
            elif type(example) is not kind:
                raise DataError(
                    f"a {type(example).__name__} among rows that are each a {kind.__name__} (as {first}); one file "
                    "holds one kind",
                    where=example.source,
                    hint="convert the files apart",
                )
            try:
                row = _row(example, form, done.lost)
            except Unwritable as problem:
                detail = f"it has {problem}, which {form} cannot hold"
                whole = example if isinstance(example, Conversation) else None
                raw = None if whole else example.model_dump(mode="json", exclude_none=True)
                row = Excluded(reason="cannot_hold", detail=detail, where=example.source, conversation=whole, raw=raw)
                log.exclude(row, done)
                continue
            done.num_written += 1
            yield kind, row


def _row(example: Example, form: str, lost: Tally) -> Row:
    if form == "csv" and isinstance(example, Document):
        return openai_messages.row(example, lost)
    return WRITERS[form](example, lost)


class _LateLog:
    """The file of excluded rows, made when the first one comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: RecordLog | None = None

    def exclude(self, row: Excluded, done: Written) -> None:
        self._log = self._log or RecordLog(self._path)
        self._log.append(row)
        done.num_excluded += 1
        done.reasons[row.reason] += 1

    def __enter__(self) -> _LateLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()


def _write_lines(path: Path, rows: Iterable[KindRow]) -> None:
    with path.open("wb") as stream:
        for _, row in rows:
            stream.write(_json(row) + b"\n")


def _write_list(path: Path, rows: Iterable[KindRow]) -> None:
    """One JSON list, a row a line."""
    before = b"[\n"
    with path.open("wb") as stream:
        for _, row in rows:
            stream.write(before + _json(row))
            before = b",\n"
        stream.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def _json(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()


def _write_csv(path: Path, rows: Iterator[KindRow]) -> None:
    first = next(rows, None)
    with path.open("w", encoding="utf-8", newline="") as stream:
        if first is None:
            return
        names = (*_COLUMNS[first[0]], *_COMMON)
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(names)
        for _, row in chain([first], rows):
            table.writerow([_cell(row.get(name)) for name in names])


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _write_flat_parquet(path: Path, rows: Iterator[KindRow]) -> None:
    """The table of the CSV form, every cell text."""
    _write_parquet(path, rows, is_flat=True)


def _write_parquet(path: Path, rows: Iterator[KindRow], *, is_flat: bool = False) -> None:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", f"writing the parquet file {path.name}") from None
    first = next(rows, None)
    kind = first[0] if first else Conversation
    names = (*_COLUMNS[kind], *_COMMON)
    schema = arrow.schema([(name, arrow.string()) for name in names]) if is_flat else _schema(arrow, kind)
    flat = _cells if is_flat else _flat
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        everything = chain([first] if first else [], rows)
        while group := [flat(row) for _, row in islice(everything, _ROWS_PER_GROUP)]:
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))


def _schema(arrow: Any, kind: type[Example]) -> Any:
    text = arrow.string()
    names = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
    turns = arrow.list_(arrow.struct([*((name, text) for name in names), ("weight", arrow.int8())]))
    columns: dict[type[Example], list[tuple[str, Any]]] = {
        Conversation: [("messages", turns)],
        Preference: [
            ("prompt", turns), ("chosen", turns), ("rejected", turns), ("score_chosen", arrow.float64()),
            ("score_rejected", arrow.float64()),
        ],
        Labelled: [("prompt", turns), ("completion", turns), ("label", arrow.bool_())],
        Document: [("text", text)],
    }  # fmt: skip
    return arrow.schema([*columns[kind], *((name, text) for name in ("tools", *_COMMON))])


def _cells(row: Row) -> Row:
    return {name: _cell(value) for name, value in row.items()}


def _flat(row: Row) -> Row:
    """A row whose open-ended parts (metadata, tools and their calls, an id that may be a number) are JSON text: columns have one type."""
    flat = dict(row)
    for name in ("messages", "prompt", "chosen", "rejected", "completion"):
        if name in flat:
            flat[name] = [
                {
                    key: json.dumps(value, ensure_ascii=False) if key == "tool_calls" else value
                    for key, value in turn.items()
                }
                for turn in flat[name]
            ]
    for name in ("metadata", "id", "tools"):
        if name in flat and not isinstance(flat[name], str):
            flat[name] = json.dumps(flat[name], ensure_ascii=False)
    return flat


_JSON = {".jsonl": _write_lines, ".ndjson": _write_lines, ".json": _write_list}
_BY_ENDING: Mapping[str, Mapping[str, Callable[[Path, Iterator[KindRow]], None]]] = {
    "alpaca": {**_JSON, ".csv": _write_csv, ".parquet": _write_flat_parquet},
    "sharegpt": _JSON,
    "messages": {**_JSON, ".parquet": _write_parquet},
    "csv": {".csv": _write_csv},
    "parquet": {".parquet": _write_parquet},
}
"""How a form is written into a file of each ending; the first one where the ending says nothing."""
