"""Examples of a file or a folder: READERS names the known shapes of rows, and the shape is recognised by looking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.readers.shape import read_file
from tunesmith.errors import DataError
from tunesmith.registry import Registry
from tunesmith.types import Conversation, Excluded

READERS = Registry(
    "reader",
    {
        name: f"tunesmith.data.readers.{name}:READER"
        for name in ("alpaca", "seed_tasks", "sharegpt", "openai_messages", "question_response")
    },
)

_DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def read_examples(path: Path) -> Iterator[Conversation | Excluded]:
    """Every example of a file, or of the data files in a folder (by name). Each row ends as one or the other.

    Raises DataError where a file as a whole cannot be read: no known shape, two shapes, wrong encoding, damaged.
    """
    shapes = [READERS.load(name) for name in READERS]
    if not path.is_dir():
        yield from read_file(path, shapes)
        return
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    data = [file for file in files if file.name.removesuffix(".gz").endswith(_DATA_ENDINGS)]
    if not data:
        names = ", ".join(file.name for file in files[:8]) or "nothing"
        raise DataError(
            f"the folder has no data file; it has: {names}",
            where=str(path),
            hint=f"expected files that end in {', '.join(_DATA_ENDINGS)}, or one of these with .gz",
        )
    for file in files:
        if file in data:
            yield from read_file(file, shapes)
        else:
            yield Excluded(reason="no_data_file", detail="its name ends in no known way", where=file.name)
