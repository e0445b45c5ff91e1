"""Bytes of a file or of a member of an archive as UTF-8 text, by line or by block; .gz is unpacked on the way.

Refuses to know what the text means. Text in another encoding is a DataError that names the byte.
"""

from __future__ import annotations

import codecs
import gzip
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from tunesmith.errors import DataError

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16

_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f utf-16 -t utf-8 OLD > NEW"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f utf-16 -t utf-8 OLD > NEW"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "name it .zip, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with `unzstd`, or use .gz"),
    (b"BZh", "compressed with bzip2", "unpack it with `bunzip2`, or use .gz"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it with `unxz`, or use .gz"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch the file: git lfs pull"),
    (b"ARROW1", "an Arrow file", "save it as parquet or JSONL"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF document", "examples are rows of JSON, CSV or parquet"),
)


class NoRows(DataError):
    """A file that is sound and holds nothing: an error where it was named, in a folder something to tell."""


@dataclass(frozen=True)
class DataFile:
    """A file, or a member of an archive: its name in messages, and how its bytes are opened."""

    name: str  # "rows.jsonl", "pages/a.html", "rows.zip/a.csv"
    opened: Callable[[], BinaryIO]


def data_file(path: Path, name: str | None = None) -> DataFile:
    """The file at `path`, called by its own name where no other is given."""
    return DataFile(name or path.name, lambda: path.open("rb"))


@contextmanager
def open_bytes(file: DataFile) -> Generator[BinaryIO]:
    """The file's bytes, unpacked where they are gzip. DataError where it cannot be read or is damaged."""
    try:
        with file.opened() as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not packed:
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as stream:
                yield cast(BinaryIO, stream)
    except zipfile.BadZipFile as error:
        raise DataError(f"the archive is damaged: {error}", where=file.name, hint="fetch or make it again") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the gzip file is damaged: {error}", where=file.name, hint="fetch or make it again") from error
    except OSError as error:
        where = str(error.filename or file.name)
        raise DataError(f"cannot be read: {error.strerror or error}", where=where) from error


def read_head(file: DataFile) -> bytes:
    """The first 64 KiB, unpacked. DataError for an empty file and for kinds of files that hold no rows."""
    with open_bytes(file) as stream:
        head = stream.read(_HEAD_BYTES)
    for magic, kind, hint in _FOREIGN:
        if head.startswith(magic):
            raise DataError(
                f"this is {kind}, expected rows as UTF-8 JSON, JSONL, CSV or parquet", where=file.name, hint=hint
            )
    if b"\0" in head and not head.startswith(b"PAR1"):
        raise DataError(
            "this is binary data, expected rows as UTF-8 JSON, JSONL, CSV or parquet",
            where=file.name,
            hint="fetch or make it again, or export its rows in one of these forms",
        )
    if not head.removeprefix(codecs.BOM_UTF8).strip():
        hint = "write its rows, or name another file"
        raise NoRows("the file is empty, expected at least one row", where=file.name, hint=hint)
    return head


def read_lines(file: DataFile) -> Iterator[str]:
    """Lines with their newline, as UTF-8 (with or without a byte order mark)."""
    offset = 0
    with open_bytes(file) as stream:
        for line in stream:
            content = line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                start = offset + len(line) - len(content) + error.start
                raise _encoding_error(file, start, content[error.start], content) from None
            yield text
            offset += len(line)


def read_blocks(file: DataFile) -> Iterator[str]:
    """The text in blocks of about 1 MiB, never cut within a character."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    with open_bytes(file) as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            kept = len(decoder.getstate()[0])  # bytes of a character the last block cut in two
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                start = offset - kept + error.start
                raise _encoding_error(file, start, error.object[error.start], error.object) from None
            if not block:
                return
            offset += len(block)
            yield text


def _encoding_error(file: DataFile, offset: int, byte: int, around: bytes) -> DataError:
    guess = next((name for name in ("gb18030", "cp1252") if _decodes(around, name)), "latin-1")
    return DataError(
        f"not UTF-8: byte 0x{byte:02x} at offset {offset:,}",
        where=file.name,
        hint=f"save it as UTF-8; it could be {guess}: iconv -f {guess} -t utf-8 OLD > NEW",
    )


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    # Any bytes decode as something; believe in gb18030 only where mostly common Chinese characters come out.
    foreign = [character for character in text if not character.isascii()]
    common = sum("\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef" for character in foreign)
    return encoding != "gb18030" or common > 0.9 * len(foreign)
