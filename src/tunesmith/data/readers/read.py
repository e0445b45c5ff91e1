"""Examples of a file, a folder or a .zip: READERS names the known shapes of rows, and the shape is recognised by looking."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from tunesmith.data.readers.containers import TEXT_ENDINGS, Batch, read_pages
from tunesmith.data.readers.shape import Conversion, Shape, open_file, recognise
from tunesmith.data.readers.source import DataFile, NoRows, data_file
from tunesmith.errors import DataError
from tunesmith.protocols import Pool
from tunesmith.registry import Registry
from tunesmith.types import Example, Excluded

Result = TypeVar("Result")

_RECOGNISED = (
    "alpaca", "seed_tasks", "sharegpt", "sharegpt_page", "openai_messages", "question_response", "preference", "labelled",
    "text",
)  # fmt: skip
READERS = Registry(
    "reader",
    {
        **{name: f"tunesmith.data.readers.{name}:READER" for name in _RECOGNISED},
        # Forms that alpaca recognises by itself; to be named where a file could be either.
        "alpaca_plain": "tunesmith.data.readers.alpaca:PLAIN",
        "belle_multiturn": "tunesmith.data.readers.belle:MULTITURN",
        "belle_generated_chat": "tunesmith.data.readers.belle:GENERATED_CHAT",
    },
)

EMPTY_FILE = "empty_file"
_DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_PAGE_ENDINGS = (".html", ".htm")


def read_examples(path: Path, form: str = "auto") -> Iterator[Example | Excluded]:
    """Every example of a file, or of the files in a folder or a .zip (by name). Each row ends as one or the other.

    form: a name in READERS, or auto to look at the rows. The .html pages of a folder are read as one file of rows.
    Raises DataError where a file as a whole cannot be read: no known shape, two shapes, wrong encoding, damaged. A file that
    holds nothing is an error by itself, and Excluded as "empty_file" beside others.
    """
    for part in _parts(path, _shapes(form)):
        yield from _examples(part)


def map_examples(
    path: Path, form: str, pool: Pool, function: Callable[[list[Example | Excluded]], Result]
) -> Iterator[Result]:
    """function(examples) of some hundred examples at a time, in their order; rows are parsed, converted and handed to the
    function in the pool. Otherwise as read_examples."""
    return pool.map(partial(_apply, function), _parts(path, _shapes(form)))


_Part = tuple[Conversion, Batch] | Excluded


def _examples(part: _Part) -> Iterator[Example | Excluded]:
    if isinstance(part, Excluded):
        return iter([part])
    conversion, batch = part
    return conversion.examples(batch)


def _apply(function: Callable[[list[Example | Excluded]], Result], part: _Part) -> Result:
    return function(list(_examples(part)))


def _parts(path: Path, shapes: Sequence[Shape]) -> Iterator[_Part]:
    """The rows of all files in batches, each with the way to convert it; Excluded for a file that is not read."""
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
        named = [data_file(file, file.relative_to(path).as_posix()) for file in files]
        yield from _parts_of_files(named, shapes, f"the folder {path}")
    elif path.name.lower().endswith(".zip"):
        with _archive(path) as members:
            yield from _parts_of_files(members, shapes, f"the archive {path.name}")
    else:
        yield from _paired(open_file(data_file(path), shapes))


def _paired(opened: tuple[Conversion, Iterator[Batch]]) -> Iterator[_Part]:
    conversion, batches = opened
    return ((conversion, batch) for batch in batches)


def _shapes(form: str) -> list[Shape]:
    names = _RECOGNISED if form == "auto" else (form,)
    return [READERS.load(name, where="format") for name in names]


def _parts_of_files(files: Sequence[DataFile], shapes: Sequence[Shape], where: str) -> Iterator[_Part]:
    plain = [file.name.lower().removesuffix(".gz") for file in files]
    data = [file for file, name in zip(files, plain, strict=True) if name.endswith(_DATA_ENDINGS)]
    pages = [file for file, name in zip(files, plain, strict=True) if name.endswith(_PAGE_ENDINGS)]
    # Text beside data is a README or a licence; text alone is the corpus.
    texts = [
        file for file, name in zip(files, plain, strict=True) if name.endswith(TEXT_ENDINGS) and not data and not pages
    ]
    if not data and not pages and not texts:
        names = ", ".join(file.name for file in files[:8]) or "nothing"
        endings = ", ".join((*_DATA_ENDINGS, *_PAGE_ENDINGS, *TEXT_ENDINGS))
        raise DataError(
            f"there is no data file; it has: {names}",
            where=where,
            hint=f"expected files that end in {endings}, or one of these with .gz",
        )
    if pages:
        yield from _paired(recognise(read_pages(pages), shapes, pages[0].name))
    read = {id(file) for file in (*data, *texts)}
    paged = {id(file) for file in pages}
    for file in files:
        if id(file) in read:
            try:
                yield from _paired(open_file(file, shapes))
            except NoRows as error:
                if len(read) + len(paged) == 1:
                    raise
                yield Excluded(reason=EMPTY_FILE, detail=error.message, where=file.name)
        elif id(file) not in paged:
            yield Excluded(
                reason="no_data_file", detail="it is not read: its name ends in no way of data", where=file.name
            )


@contextmanager
def _archive(path: Path) -> Generator[list[DataFile]]:
    """The members of a .zip in the order of their names, open while the block runs."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield [
                _member(path.name, archive, entry)
                for entry in sorted(archive.infolist(), key=lambda entry: entry.filename)
                if not entry.is_dir()
            ]
    except zipfile.BadZipFile as error:
        raise DataError(f"the archive is damaged: {error}", where=path.name, hint="fetch or make it again") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _member(archive_name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> DataFile:
    name = f"{archive_name}/{entry.filename}"

    def opened() -> BinaryIO:
        if entry.flag_bits & 1:
            raise DataError("this member is encrypted", where=name, hint="unpack the archive first")
        return cast(BinaryIO, archive.open(entry))

    return DataFile(name, opened)
