"""How many rows example files hold and about how many tokens those have, before anything runs: for `tunesmith plan`.

Counts with the readers that ingest uses, so a list on one line or over many is as many rows here as there. Of a large
file only the beginning is read. Knows no tokenizer: tokens are guessed from the text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.readers import read_examples
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Example, Excluded

MAX_COUNTED_BYTES = 8 << 20
"""A file is counted whole up to this size and guessed from its beginning above: a few seconds of reading."""

_CHARACTERS_PER_TOKEN = 4.0  # of ASCII text in vocabularies of 2023 to 2025; other characters count one token each
_TOKENS_PER_MESSAGE = 12  # role, turn marks, and the share of a default system prompt
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Counted:
    """Rows to learn from, rows that cannot be used, tokens of the former. `exact` is about the rows: tokens never are."""

    num_rows: int = 0
    num_rejected: int = 0
    num_tokens: float = 0.0
    exact: bool = True

    def __add__(self, other: Counted) -> Counted:
        return Counted(
            self.num_rows + other.num_rows,
            self.num_rejected + other.num_rejected,
            self.num_tokens + other.num_tokens,
            self.exact and other.exact,
        )

    def at_most(self, num_rows: int | None) -> Counted:
        """The rows that `file#N` draws; none = all."""
        if num_rows is None or num_rows >= self.num_rows:
            return self
        return Counted(num_rows, self.num_rejected, self.num_tokens * num_rows / self.num_rows, exact=True)

    def times(self, factor: float) -> Counted:
        """A guess of the whole from a part of it."""
        rows, rejected = round(self.num_rows * factor), round(self.num_rejected * factor)
        return Counted(rows, rejected, self.num_tokens * factor, exact=False)


def count_examples(path: Path) -> Counted:
    """Count a file, or the data files of a folder. DataError where ingest could not read it either."""
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    if all(file.stat().st_size <= MAX_COUNTED_BYTES for file in files):
        return _count(read_examples(path))
    total = Counted()
    for file in files:
        try:
            total += _count_file(file)
        except DataError:
            if file == path:
                raise
            total += Counted(num_rejected=1)  # a file of another kind beside the data
    return total


def tokens_of(text: str) -> float:
    """About how many tokens a text has."""
    num_ascii = sum(character.isascii() for character in text)
    return num_ascii / _CHARACTERS_PER_TOKEN + len(text) - num_ascii


def _count_file(path: Path) -> Counted:
    size_bytes = path.stat().st_size
    if size_bytes <= MAX_COUNTED_BYTES:
        return _count(read_examples(path))
    with path.open("rb") as stream:
        if stream.read(4) in (b"PAR1", b"PK\x03\x04"):  # their index is at the end, so a beginning cannot be read
            return _count(read_examples(path))
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        head = Path(folder) / path.name
        with path.open("rb") as whole, head.open("wb") as part:
            for _ in range(MAX_COUNTED_BYTES // _COPY_BYTES):
                part.write(whole.read(_COPY_BYTES))
        return _count(_until_torn(read_examples(head))).times(size_bytes / MAX_COUNTED_BYTES)


def _until_torn(rows: Iterable[Example | Excluded]) -> Iterator[Example | Excluded]:
    """The rows before the place where the file was cut. What was wrong before any row is raised."""
    any_row = False
    try:
        for row in rows:
            any_row = True
            yield row
    except DataError:
        if not any_row:
            raise


def _count(rows: Iterable[Example | Excluded]) -> Counted:
    num_rows, num_rejected, num_tokens = 0, 0, 0.0
    for row in rows:
        if isinstance(row, Excluded):
            num_rejected += 1
        elif (
            isinstance(row, Conversation) and row.split != "test"
        ):  # pairs, labels and plain text are counted by ingest
            num_rows += 1
            num_tokens += sum(tokens_of(message.content) + _TOKENS_PER_MESSAGE for message in row.messages)
    return Counted(num_rows, num_rejected, num_tokens)
