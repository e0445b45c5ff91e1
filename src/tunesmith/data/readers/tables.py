"""Rows of CSV, TSV and parquet files as dicts of column name to cell. Column names are lower-cased and trimmed.

Refuses to know what the columns mean.
"""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

from tunesmith.data.readers.source import DataFile, open_bytes, read_lines
from tunesmith.errors import DataError, MissingExtra
from tunesmith.types import Excluded

_DELIMITERS = (",", "\t", ";", "|")
_MAX_CELL_CHARACTERS = 1 << 27


def sniff_delimiter(text: str) -> str | None:
    """The delimiter that cuts the header line into most columns; "," for a single column; None where the first line
    is no header (its columns have no or equal names)."""
    header = next(csv.reader([text.lstrip().split("\n", 1)[0]]), [])
    if len(header) == 1 and not any(delimiter in header[0] for delimiter in _DELIMITERS):
        return "," if header[0].strip().replace("_", "").isalpha() else None
    best = max(_DELIMITERS, key=lambda delimiter: len(_columns(text, delimiter)))
    names = [name for name in _columns(text, best) if name]
    return best if len(names) > 0 and all(len(name) <= 64 for name in names) else None


def looks_like_table(text: str, columns: Collection[str]) -> bool:
    """Whether a text file without a telling name is a table: its first line is a header that has one of these columns,
    and its second line has as many cells."""
    lines = text.split("\n")[:2]
    delimiter = sniff_delimiter(lines[0])
    if delimiter is None or len(lines) < 2:
        return False
    names = _columns(lines[0], delimiter)
    if len(names) < 2 or not set(names) & set(columns) or any(len(name.split()) > 3 for name in names):
        return False
    cells = next(csv.reader([lines[1]], delimiter=delimiter), [])
    return len(cells) == len(names) or '"' in lines[1]  # a quoted cell may go on in the next line


def read_table(file: DataFile) -> Iterator[tuple[str, dict[str, Any] | Excluded]]:
    """(file:line, cells by column) of each row; a row with too many or too few cells comes as Excluded.

    A column without a name (a saved index) is left out. DataError for columns of the same name and for a quote that
    never closes.
    """
    lines = _Counted(read_lines(file))
    first = next(lines, "")
    delimiter = sniff_delimiter(first) or ","
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    names = _columns(first, delimiter)
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise DataError(f"two columns are named {twice!r}", where=f"{file.name}:1", hint="rename one of them")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.count + 1
        where = f"{file.name}:{number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise DataError(
                    "a quote opened in this row never closes, so everything after it is one cell",
                    where=where,
                    hint='close it, or write a quote inside a cell twice: ""',
                ) from None
            yield where, Excluded(reason="invalid_csv", detail=f"not valid CSV: {error}", where=where)
            continue
        if not cells or cells == [""]:
            continue
        if len(cells) != len(names):
            detail = f"{len(cells)} cells where the header has {len(names)}"
            if len(cells) > len(names):
                detail += f"; a cell with {delimiter!r} in it needs quotes"
            raw = delimiter.join(cells)[:2000]
            yield where, Excluded(reason="invalid_csv", detail=detail, where=where, raw=raw)
            continue
        yield where, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def read_parquet(file: DataFile) -> Iterator[dict[str, Any]]:
    """Cells by column of each row, one batch in memory at a time. MissingExtra without pyarrow."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", f"reading the parquet file {file.name}") from None
    try:
        with tempfile.TemporaryFile() as copy, open_bytes(file) as packed:
            # A packed file cannot be read from its end, where parquet keeps its table of contents.
            plain = packed if isinstance(packed, io.BufferedReader) else copy
            if plain is copy:
                shutil.copyfileobj(packed, copy)
                copy.seek(0)
            if not _is_whole_parquet(plain):
                raise DataError(
                    "the parquet file is damaged: its end is missing (an interrupted download or write?)",
                    where=file.name,
                    hint="fetch or make it again",
                )
            for batch in parquet.ParquetFile(plain).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield {_column_name(name): cell for name, cell in row.items() if _column_name(name)}
    except DataError:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: names or texts that are not UTF-8
        raise DataError(
            f"the parquet file is damaged: {error}", where=file.name, hint="fetch or make it again"
        ) from error


def _is_whole_parquet(stream: io.IOBase) -> bool:
    """Whether it ends as parquet does. The place is the beginning again."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 4))
    ending = stream.read(4)
    stream.seek(0)
    return size >= 12 and ending == b"PAR1"


class _Counted(Iterator[str]):
    """Lines, and how many were taken: a quoted cell may span several."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.count = 0

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        return line


def _columns(text: str, delimiter: str) -> list[str]:
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    return [_column_name(name) for name in next(csv.reader([first], delimiter=delimiter), [])]


def _column_name(name: str) -> str:
    # "__index_level_0__" and "Unnamed: 0" are what pandas writes for an index without a name.
    plain = name.strip().lower()
    return "" if plain.startswith(("unnamed:", "__index_level_")) else plain
