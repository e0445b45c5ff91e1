"""Rows of a file in any container: JSON lines, a JSON list, JSON objects one after another, CSV or TSV, parquet.

The container is recognised by its content. Rows are streamed. Refuses to know what the fields mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.readers.source import read_blocks, read_head, read_lines
from tunesmith.data.readers.tables import read_parquet, read_table, sniff_delimiter
from tunesmith.errors import DataError
from tunesmith.types import Excluded

RAW_CHARACTERS = 2000
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Row:
    """One row as it was found. `where` is file:line, or file#number in a list or a parquet file."""

    where: str
    value: Any


def read_rows(path: Path) -> Iterator[Row | Excluded]:
    """Every row; one that is no JSON comes as Excluded. DataError where the file as a whole cannot be read."""
    return container_of(path)(path)


def container_of(path: Path) -> Callable[[Path], Iterator[Row | Excluded]]:
    """The function that reads this file's rows, found by looking at its first 64 KiB."""
    head = read_head(path)
    if head.startswith(b"PAR1"):
        return _parquet
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("["):
        return _json_list
    if text.startswith("{"):
        return _json_objects if _spans_lines(text) else _json_lines
    if path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return _json_lines
    if sniff_delimiter(text) is not None:
        return _table
    raise DataError(
        f"this is no list of rows: it starts with {text[:60]!r}",
        where=path.name,
        hint="expected a JSON list, one JSON object a line, CSV or TSV with a header line, or parquet",
    )


def cut_raw(value: Any) -> Any:
    """A row for the rejects file: as it is where it is short and can be written, else the start of its text."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        return ascii(value)[:RAW_CHARACTERS]
    return value if len(text) <= RAW_CHARACTERS else text[:RAW_CHARACTERS]


def _spans_lines(text: str) -> bool:
    """Whether the object at the start goes on over the next line, rather than being a row of its own (maybe a bad one)."""
    first, *others = [line.strip() for line in text.splitlines() if line.strip()][:2]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return bool(others) and not others[0].startswith("{")
    return False


def _json_lines(path: Path) -> Iterator[Row | Excluded]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            yield Row(where, json.loads(line.rstrip("\r\n"), parse_constant=_refuse_constant))
        except RecursionError:
            yield Excluded(reason="invalid_json", detail="nested too deeply", where=where, raw=cut_raw(line))
        except ValueError as error:
            detail = f"not valid JSON: {_problem(error)}; expected one JSON object on the line"
            yield Excluded(reason="invalid_json", detail=detail, where=where, raw=cut_raw(line.rstrip("\n")))


def _json_list(path: Path) -> Iterator[Row | Excluded]:
    values = _JsonStream(path)
    values.skip("[")
    number = 0
    if not values.skip("]"):
        while True:
            number += 1
            yield Row(f"{path.name}#{number}", values.next_value(f"row {number} of the list"))
            if values.skip("]"):
                break
            if not values.skip(","):
                raise values.error(f"a comma or the end of the list is missing after row {number}")
    if not number:
        raise DataError("the list is empty, expected at least one row", where=path.name)
    if not values.at_end():
        raise values.error(f"there is more text after the end of the list of {number} rows")


def _json_objects(path: Path) -> Iterator[Row | Excluded]:
    values = _JsonStream(path)
    number = 0
    while not values.at_end():
        number += 1
        yield Row(f"{path.name}#{number}", values.next_value(f"object {number}"))


def _table(path: Path) -> Iterator[Row | Excluded]:
    for where, value in read_table(path):
        yield value if isinstance(value, Excluded) else Row(where, value)


def _parquet(path: Path) -> Iterator[Row | Excluded]:
    for number, value in enumerate(read_parquet(path), start=1):
        yield Row(f"{path.name}#{number}", value)


class _JsonStream:
    """JSON values one after another out of blocks of text; holds one value and one block at a time."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._blocks = read_blocks(path)
        self._text = ""
        self._at = 0
        self._ended = False
        self._lines_before = 0  # newlines in the text already let go
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def skip(self, token: str) -> bool:
        """Move past `token` where it comes next."""
        self._skip_space()
        found = self._text.startswith(token, self._at)
        self._at += len(token) if found else 0
        return found

    def at_end(self) -> bool:
        self._skip_space()
        return self._at == len(self._text)

    def next_value(self, what: str) -> Any:
        self._skip_space()
        wanted = 1
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number at the edge of a block may go on in the next one.
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
                problem = ""
            except RecursionError:
                raise self.error(f"{what} is nested too deeply") from None
            except ValueError as error:
                problem = _problem(error)
                if self._ended:
                    position = getattr(error, "pos", len(self._text))
                    cut = position >= len(self._text.rstrip()) or "Unterminated" in problem
                    ending = "the file ends in the middle of it (an interrupted write?)" if cut else problem
                    self._at = position
                    raise self.error(f"{what} is not valid JSON: {ending}") from None
            for _ in range(wanted):  # twice as much each time: a value of any size costs linear work
                self._read()
            wanted *= 2

    def error(self, message: str) -> DataError:
        """A DataError that names the line reached."""
        line = self._lines_before + self._text.count("\n", 0, self._at) + 1
        return DataError(
            message, where=f"{self._name}:{line}", hint="repair the file, or save one JSON object per line"
        )

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return
            self._read()

    def _read(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            self._ended = True
            return
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + block
        self._at = 0


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error)
