"""Rows that stay on disk: a file of conversations, which of its rows are meant and in which order, and functions over them
that run in a pool.

About 17 bytes per row are held, whatever a row's length. Refuses to know why a row is chosen.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError
from tunesmith.protocols import Pool
from tunesmith.store import disk_error
from tunesmith.text.jsonl import parse_record
from tunesmith.types import Conversation

T = TypeVar("T")
IntArray = NDArray[np.int64]

ROWS_PER_SPAN = 2000
BYTES_PER_SPAN = 1 << 24  # at most, where a line alone is not more
_BLOCK_BYTES = 1 << 24
_NEWLINE = ord("\n")


@dataclass(frozen=True)
class Span:
    """Neighbouring lines of a file: what a worker reads by itself."""

    path: Path
    begin: int  # byte of the first line
    size_bytes: int
    first: int  # number of the first line
    num_rows: int  # wanted lines
    wanted: bytes | None = None  # one byte per line, 0 = passed over; None: all are wanted

    def lines(self) -> list[bytes]:
        """The wanted lines, newline included."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.begin)
                lines = stream.read(self.size_bytes).splitlines(keepends=True)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=str(self.path)) from error
        return lines if self.wanted is None else [line for line, is_wanted in zip(lines, self.wanted) if is_wanted]  # noqa: B905

    def parsed(self, lines: Sequence[bytes]) -> list[Conversation]:
        """Such lines as conversations. DataError names the file of a damaged one and the first line of the span."""
        where = f"{self.path.name}, from line {self.first + 1:,} on"
        return [parse_record(line, Conversation, where=where) for line in lines]

    def rows(self) -> list[Conversation]:
        """The wanted lines as conversations."""
        return self.parsed(self.lines())


class RowFile:
    """A file of one record a line, and where each line begins."""

    def __init__(self, path: Path, begins: IntArray) -> None:
        self.path = path
        self._begins = begins  # (rows + 1,) bytes

    @classmethod
    def scan(cls, path: Path) -> RowFile:
        """A file that is there already."""
        writer = _Begins()
        try:
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    writer.take(block)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
        return cls(path, writer.array())

    def __len__(self) -> int:
        return len(self._begins) - 1

    def end_of_span(self, first: int) -> int:
        """The line before which a span that begins at line `first` ends: a worker holds all of it."""
        end = int(np.searchsorted(self._begins, self._begins[first] + BYTES_PER_SPAN, "right")) - 1
        return min(max(end, first + 1), first + ROWS_PER_SPAN)

    def span(self, first: int, last: int, wanted: bytes | None = None) -> Span:
        """Lines first to last, the last one included."""
        begin, end = int(self._begins[first]), int(self._begins[last + 1])
        num_rows = last - first + 1 if wanted is None else wanted.count(1)
        return Span(self.path, begin, end - begin, first, num_rows, wanted)


class RowWriter:
    """Writes a RowFile, some lines at a time. StoreError where the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins = _Begins()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("wb")
        except OSError as error:
            raise disk_error(error, path, 0) from error

    def write(self, lines: bytes) -> None:
        """Whole lines, each with its newline."""
        try:
            self._stream.write(lines)
        except OSError as error:
            raise disk_error(error, self._path, len(lines)) from error
        self._begins.take(lines)

    def close(self) -> RowFile:
        try:
            self._stream.close()
        except OSError as error:
            raise disk_error(error, self._path, self._begins.size_bytes) from error
        return RowFile(self._path, self._begins.array())

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(OSError):  # of a full disk, which is what `error` says already
            self._stream.close()


class Rows(Sequence[Conversation]):
    """Some rows of a file, in any order. Going through them reads the file again; map() runs in the pool."""

    def __init__(self, file: RowFile, numbers: IntArray, pool: Pool) -> None:
        self.file = file
        self.numbers = numbers  # of the lines meant, in their order
        self.pool = pool

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Conversation | Rows:
        if isinstance(index, slice):
            return self.chosen(self.numbers[index])
        number = int(self.numbers[index])
        return self.file.span(number, number).rows()[0]

    def __iter__(self) -> Iterator[Conversation]:
        for span in self.spans():
            yield from span.rows()

    def lines(self) -> Iterator[bytes]:
        """The rows as they stand in the file, newline included."""
        for span in self.spans():
            yield from span.lines()

    def chosen(self, numbers: IntArray) -> Rows:
        """Other lines of the same file."""
        return Rows(self.file, numbers, self.pool)

    def map(self, function: Callable[[Conversation], T]) -> Iterator[T]:
        """function(row) of each row, in order."""
        for results in self.pool.map(partial(_each, function), self.spans()):
            yield from results

    def spans(self) -> Iterator[Span]:
        """The rows, in order, as pieces that workers read by themselves."""
        breaks = np.flatnonzero(np.diff(self.numbers) <= 0) + 1
        for run in np.split(self.numbers, breaks):
            start = 0
            while start < len(run):
                first = int(run[start])
                end = int(np.searchsorted(run, self.file.end_of_span(first)))
                last = int(run[end - 1])
                wanted = None
                if last - first + 1 > end - start:
                    mask = np.zeros(last - first + 1, np.uint8)
                    mask[run[start:end] - first] = 1
                    wanted = mask.tobytes()
                yield self.file.span(first, last, wanted)
                start = end


def all_rows(file: RowFile, pool: Pool) -> Rows:
    """Every row of a file, in its order."""
    return Rows(file, np.arange(len(file)), pool)


def map_rows(function: Callable[[Conversation], T], rows: Sequence[Conversation]) -> Iterator[T]:
    """function(row) of each row, in order: in the pool for rows on disk, here for a list. The function must come from a
    module, arguments bound with functools.partial."""
    return rows.map(function) if isinstance(rows, Rows) else map(function, rows)


def _each(function: Callable[[Conversation], T], span: Span) -> list[T]:
    return [function(row) for row in span.rows()]


class _Begins:
    """Where lines begin, learnt block by block."""

    def __init__(self) -> None:
        self._begins = array("q", [0])
        self.size_bytes = 0

    def take(self, block: bytes) -> None:
        found = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
        self._begins.frombytes((found + (self.size_bytes + 1)).astype(np.int64).tobytes())
        self.size_bytes += len(block)

    def array(self) -> IntArray:
        joined = np.frombuffer(self._begins, np.int64)
        # A last line without its newline is a line too.
        return joined if joined[-1] == self.size_bytes else np.append(joined, self.size_bytes)
