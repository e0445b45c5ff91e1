"""Records as JSON lines: whole files written atomically, logs that grow line by line and survive a kill.

The bytes depend on the records alone: fields in the order of the class, None left out where None is the default,
UTF-8, one "\\n" a line. Knows nothing of what the records mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith.errors import DataError
from tunesmith.store import disk_error

T = TypeVar("T", bound=BaseModel)


def dump_record(record: BaseModel) -> bytes:
    """One record as its line, newline included. DataError where a value has no JSON form (NaN, half a surrogate)."""
    try:
        text = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode() + b"\n"
    except RecursionError as error:
        raise DataError(f"a {type(record).__name__} holds a value that is nested too deeply") from error
    except (ValueError, TypeError) as error:
        name = type(record).__name__
        raise DataError(f"a {name} holds a value that cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        held = value.__dict__
        return {
            name: inner if type(inner) is str else _plain(inner)
            for name, may_go in _fields(type(value))
            if (inner := held[name]) is not None or not may_go
        }
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


@cache
def _fields(model: type[BaseModel]) -> tuple[tuple[str, bool], ...]:
    """(name, whether a None is left out) of each field. Only a None that is the default is: that of an unscored Score
    must be there to be read back."""
    return tuple((name, field.get_default() is None) for name, field in model.model_fields.items())


def write_records(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write the file as a whole and return the number of rows: a reader sees the old file or the new one.

    `rows` is consumed one by one, so it may be a generator. StoreError names the path and the bytes where the disk
    is full. The temporary name is fixed, so that a killed run leaves nothing behind once it was resumed.
    """
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in rows:
            yield dump_record(row)
            count += 1

    write_blocks(path, lines())
    return count


def write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    """Write whole lines as a file, which a reader sees as it was or as a whole. Errors as in write_records."""
    temporary = path.with_name(f".{path.name}.tmp")
    size_bytes = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for block in blocks:
                size_bytes += len(block)
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, size_bytes) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(path: Path, model: type[T]) -> list[T]:
    """Every record of the file. DataError names file, line and field of the first bad one."""
    return list(iter_records(path, model))


def iter_records(path: Path, model: type[T]) -> Iterator[T]:
    """The records one by one, for files larger than memory. Errors as in read_records. Blank lines are passed over."""
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield parse_record(line, model, where=f"{path.name}:{number}")


def parse_record(line: bytes, model: type[T], *, where: str) -> T:
    """One line as a record. DataError says which field is wrong and how."""
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        named = f"field {field!r}: {first['msg']}" if field else first["msg"]
        raise DataError(
            f"this line is no {model.__name__}: {named}",
            where=where,
            hint="the file was changed by hand or damaged; delete its folder to make it again",
        ) from None


def read_log(path: Path, model: type[T]) -> list[T]:
    """Every whole record of a log; a last line without its newline (a killed writer) is left out. [] without a file."""
    if not path.exists():
        return []
    records: list[T] = []
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.endswith(b"\n") and line.strip():
                records.append(parse_record(line, model, where=f"{path.name}:{number}"))
    return records


class RecordLog:
    """An append-only file of records. Opening it cuts off a torn last line; each append is one write, whole or not at all.

    One writer at a time (the store's lock sees to that). A process killed at any moment loses at most the line it was
    writing; a machine that loses power loses what was appended since the last sync().
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)
            self._size_bytes = _whole_bytes(path)
            self._stream.truncate(self._size_bytes)
        except OSError as error:
            raise disk_error(error, path, 0) from error

    def append(self, record: BaseModel) -> None:
        """Write one record through to the operating system. StoreError, and the file as it was, where the disk is full."""
        self.append_lines(dump_record(record))

    def append_lines(self, lines: bytes) -> None:
        """Write records as dump_record gives them. Errors as in append."""
        try:
            written = 0
            while written < len(lines):
                written += self._stream.write(lines[written:]) or 0
        except OSError as error:
            self._stream.truncate(self._size_bytes)
            raise disk_error(error, self.path, self._size_bytes + len(lines)) from error
        self._size_bytes += len(lines)

    def sync(self) -> None:
        """Make what was appended survive a loss of power."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def append_record(path: Path, record: BaseModel) -> None:
    """Append one record to a log that is opened for it alone; RecordLog where there are many."""
    with RecordLog(path) as log:
        log.append(record)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _whole_bytes(path: Path) -> int:
    """Size of the file up to and including its last newline, found from the end."""
    block = 1 << 16
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - block)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
