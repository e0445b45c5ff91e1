"""Rows of a file in any container: JSON lines, a JSON list, JSON objects one after another, CSV or TSV, parquet, a saved
page, plain text.

The container is recognised by its content, text by its name too. Rows are streamed in batches, which can be sent to a
worker and parsed there: a file of any size takes the memory of one block and one batch. Refuses to know what the fields
mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.pages.page import PageError, find_page_data
from tunesmith.data.readers.source import DataFile, NoRows, read_blocks, read_head, read_lines
from tunesmith.data.readers.tables import looks_like_table, read_parquet, read_table, sniff_delimiter
from tunesmith.errors import DataError
from tunesmith.types import Excluded

RAW_CHARACTERS = 2000
SURELY_FLAT = 150
"""With fewer opening brackets nothing is nested so deeply that a record of it could not be read again (200 levels)."""
_ROWS_PER_BATCH = 1000
_PARSED_ROWS_PER_BATCH = 200
_CHARACTERS_PER_BATCH = 1 << 20
_PAGES_PER_BATCH = 32
TEXT_ENDINGS = (".txt", ".md")
_SPACE = re.compile(r"\s*")
_JSON_START = re.compile(r"""\[\s*[\[{]|\{\s*["}]""")
_PAGE_START = re.compile(r"<(!doctype\s+html|html|head|body|script|!--)", re.IGNORECASE)
_TEXT_CHARACTERS = 1 << 20  # plain text longer than this is cut into documents, where it can be at an empty line


@dataclass(frozen=True)
class Row:
    """One row as it was found. `where` is file:line, or file#number in a list or a parquet file."""

    where: str
    value: Any


class Batch(Protocol):
    """Some rows of a file, parsed when they are asked for. Picklable."""

    def rows(self) -> Iterator[Row | Excluded]: ...


@dataclass(frozen=True)
class RowBatch:
    """Rows that could only be found by parsing them."""

    members: tuple[Row | Excluded, ...]

    def rows(self) -> Iterator[Row | Excluded]:
        return iter(self.members)


@dataclass(frozen=True)
class LineBatch:
    """Lines of JSON, the first one of which has the number `first`."""

    name: str
    first: int
    lines: tuple[str, ...]

    def rows(self) -> Iterator[Row | Excluded]:
        for number, line in enumerate(self.lines, start=self.first):
            if line.strip():
                yield _json_line(line, f"{self.name}:{number}")


@dataclass(frozen=True)
class PageBatch:
    """Saved web pages, as (name, text)."""

    pages: tuple[tuple[str, str], ...]

    def rows(self) -> Iterator[Row | Excluded]:
        for name, text in self.pages:
            try:
                yield Row(name, find_page_data(text))
            except PageError as error:
                raw = cut_raw(text)
                yield Excluded(reason="no_page_data", detail=str(error), where=name, field=error.field, raw=raw)


def read_rows(file: DataFile, columns: Collection[str]) -> Iterator[Row | Excluded]:
    """Every row; one that is no JSON comes as Excluded. DataError where the file as a whole cannot be read.

    columns: names of fields by which a table is told from prose in a .txt file.
    """
    for batch in read_batches(file, columns):
        yield from batch.rows()


def read_batches(file: DataFile, columns: Collection[str]) -> Iterator[Batch]:
    """The rows of read_rows, a batch at a time. Errors as there."""
    return container_of(file, columns)(file)


def read_pages(files: Iterable[DataFile]) -> Iterator[Batch]:
    """Saved web pages as one file of rows, one row each."""
    pages: list[tuple[str, str]] = []
    size = 0
    for file in files:
        text = "".join(read_blocks(file))
        pages.append((file.name, text))
        size += len(text)
        if size >= _CHARACTERS_PER_BATCH or len(pages) == _PAGES_PER_BATCH:
            yield PageBatch(tuple(pages))
            pages, size = [], 0
    if pages:
        yield PageBatch(tuple(pages))


def container_of(file: DataFile, columns: Collection[str]) -> Callable[[DataFile], Iterator[Batch]]:
    """The function that reads this file's batches, found by looking at its first 64 KiB."""
    head = read_head(file)
    if head.startswith(b"PAR1"):
        return _parquet
    text = head.decode("utf-8-sig", "replace").lstrip()
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        raise DataError(
            f"the file is called .parquet, but its content is not: it starts with {text[:40]!r}",
            where=file.name,
            hint="fetch or make it again, or give it the ending of what it holds: .jsonl, .json, .csv",
        )
    if name.endswith(TEXT_ENDINGS) and not _JSON_START.match(text):
        return _table if name.endswith(".txt") and looks_like_table(text, columns) else _text
    if _PAGE_START.match(text):
        return _page
    if text.startswith("["):
        return _json_list
    if text.startswith("{"):
        return _json_objects if _spans_lines(text) else _json_lines
    if name.endswith((".jsonl", ".ndjson")):
        return _json_lines
    if sniff_delimiter(text) is not None:
        return _table
    raise DataError(
        f"this is no list of rows: it starts with {text[:60]!r}",
        where=file.name,
        hint="expected a JSON list, one JSON object a line, CSV or TSV with a header line, parquet, a saved ShareGPT "
        "page, or plain text in a file that ends in .txt or .md",
    )


def cut_raw(value: Any) -> Any:
    """A row for the rejects file: as it is where it is short and can be written and read, else the start of its text."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        return ascii(value)[:RAW_CHARACTERS]
    is_flat = text.count("[") + text.count("{") < SURELY_FLAT
    return value if len(text) <= RAW_CHARACTERS and is_flat else text[:RAW_CHARACTERS]


def _spans_lines(text: str) -> bool:
    """Whether the object at the start goes on over the next line, rather than being a row of its own (maybe a bad one)."""
    # Only a newline ends a line of JSON lines; U+2028 and others may stand in a string.
    first, *others = [line.strip() for line in text.split("\n") if line.strip()][:2]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return bool(others) and not others[0].startswith("{")
    return False


def _json_lines(file: DataFile) -> Iterator[Batch]:
    lines: list[str] = []
    first, size = 1, 0
    for line in read_lines(file):
        lines.append(line)
        size += len(line)
        if size >= _CHARACTERS_PER_BATCH or len(lines) == _ROWS_PER_BATCH:
            yield LineBatch(file.name, first, tuple(lines))
            first += len(lines)
            lines, size = [], 0
    if lines:
        yield LineBatch(file.name, first, tuple(lines))


def _json_line(line: str, where: str) -> Row | Excluded:
    try:
        return Row(where, json.loads(line.rstrip("\r\n"), parse_constant=_refuse_constant))
    except RecursionError:
        return Excluded(reason="invalid_json", detail="nested too deeply", where=where, raw=cut_raw(line))
    except ValueError as error:
        detail = f"not valid JSON: {_problem(error)}; expected one JSON object on the line"
        return Excluded(reason="invalid_json", detail=detail, where=where, raw=cut_raw(line.rstrip("\n")))


def _num_characters(value: Any) -> int:
    """Of all texts in a value, names apart."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_characters, value.values()))
    return sum(map(_num_characters, value)) if isinstance(value, list) else 0


def _batched(rows: Callable[[DataFile], Iterator[Row | Excluded]]) -> Callable[[DataFile], Iterator[Batch]]:
    """Rows as batches. An error in the middle of a file comes after the batch of the rows before it."""

    def batches(file: DataFile) -> Iterator[Batch]:
        members: list[Row | Excluded] = []
        size = 0
        try:
            for row in rows(file):
                members.append(row)
                size += _num_characters(row.value) if isinstance(row, Row) else 0
                if size >= _CHARACTERS_PER_BATCH or len(members) == _PARSED_ROWS_PER_BATCH:
                    yield RowBatch(tuple(members))
                    members, size = [], 0
        except DataError:
            if members:
                yield RowBatch(tuple(members))
            raise
        if members:
            yield RowBatch(tuple(members))

    return batches


@_batched
def _json_list(file: DataFile) -> Iterator[Row | Excluded]:
    values = _JsonStream(file)
    values.skip("[")
    number = 0
    if not values.skip("]"):
        while True:
            number += 1
            yield Row(f"{file.name}#{number}", values.next_value(f"row {number} of the list"))
            if values.skip("]"):
                break
            if not values.skip(","):
                raise values.error(f"a comma or the end of the list is missing after row {number}")
    if not number:
        hint = "write its rows, or name another file"
        raise NoRows("the list is empty, expected at least one row", where=file.name, hint=hint)
    if not values.at_end():
        raise values.error(f"there is more text after the end of the list of {number} rows")


@_batched
def _json_objects(file: DataFile) -> Iterator[Row | Excluded]:
    values = _JsonStream(file)
    number = 0
    while not values.at_end():
        number += 1
        yield Row(f"{file.name}#{number}", values.next_value(f"object {number}"))


@_batched
def _table(file: DataFile) -> Iterator[Row | Excluded]:
    for where, value in read_table(file):
        yield value if isinstance(value, Excluded) else Row(where, value)


@_batched
def _parquet(file: DataFile) -> Iterator[Row | Excluded]:
    for number, value in enumerate(read_parquet(file), start=1):
        yield Row(f"{file.name}#{number}", value)


def _page(file: DataFile) -> Iterator[Batch]:
    return read_pages([file])


@_batched
def _text(file: DataFile) -> Iterator[Row | Excluded]:
    """Plain text as rows of a field `text`: one, or pieces of at most a mebibyte, cut at an empty line or a line end."""
    waiting, line = "", 1
    for block in read_blocks(file):
        waiting += block
        while len(waiting) > _TEXT_CHARACTERS:
            cuts = (waiting.rfind(mark, 1, _TEXT_CHARACTERS) + len(mark) for mark in ("\n\n", "\n"))
            cut = next((cut for cut in cuts if cut > 2), _TEXT_CHARACTERS)
            yield Row(f"{file.name}:{line}", {"text": waiting[:cut].strip("\n")})
            line += waiting.count("\n", 0, cut)
            waiting = waiting[cut:]
    if waiting.strip():
        yield Row(f"{file.name}:{line}", {"text": waiting.strip("\n")})


class _JsonStream:
    """JSON values one after another out of blocks of text; holds one value and one block at a time."""

    def __init__(self, file: DataFile) -> None:
        self._name = file.name
        self._blocks = read_blocks(file)
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
