"""Texts that are equal after normalising. The first one stays and names the others.

    find_exact(texts, nfkc=..., collapse_whitespace=..., ignore_case=..., num_threads=...) -> Matches
    ExactIndex(nfkc=..., ...).add(texts) -> Matches      shard by shard, rows numbered through

Keeps 16 bytes of fingerprint and 8 to 32 of table per row and no text, so that 10 million rows take some 500 MB.
Without numba the normalised texts themselves are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tunesmith.data.kernels import compiled, map_chunks
from tunesmith.data.matches import IntArray, Matches, from_dup_of


def find_exact(
    texts: Sequence[str], *, nfkc: bool, collapse_whitespace: bool, ignore_case: bool, num_threads: int
) -> Matches:
    """Each text equal to an earlier one names the first such text; score 1. Case is folded as str.casefold does."""
    index = ExactIndex(
        nfkc=nfkc, collapse_whitespace=collapse_whitespace, ignore_case=ignore_case, num_threads=num_threads
    )
    return index.add(texts)


def normalised(text: str, *, nfkc: bool, collapse_whitespace: bool, ignore_case: bool) -> str:
    """The text two rows are compared by."""
    if nfkc and not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if collapse_whitespace:
        text = " ".join(text.split())
    if ignore_case:
        text = text.casefold()
        # Folding can take composed letters apart ("ΐ"), and equal texts must not differ by that.
        text = unicodedata.normalize("NFKC", text) if nfkc and not text.isascii() else text
    return text


class _Firsts(Protocol):
    def __len__(self) -> int: ...

    def add(self, texts: Sequence[str]) -> IntArray:
        """Per text the first row it repeats, -1 for none."""
        ...


class ExactIndex:
    """All texts seen so far, each by its fingerprint."""

    def __init__(self, *, nfkc: bool, collapse_whitespace: bool, ignore_case: bool, num_threads: int) -> None:
        options = (nfkc, collapse_whitespace, ignore_case)
        self._firsts: _Firsts = _CompiledFirsts(*options, num_threads) if compiled() else _PlainFirsts(*options)

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, texts: Sequence[str]) -> Matches:
        """Number the texts on from those before, and name for each the first row it repeats, in those numbers."""
        begin = len(self)
        dup_of = self._firsts.add(texts)
        matches = from_dup_of(dup_of, (dup_of >= 0).astype(np.float64))
        matches.cluster[dup_of < 0] += begin
        return matches


class _PlainFirsts:
    """Normalised texts in a dictionary."""

    def __init__(self, nfkc: bool, collapse: bool, lower: bool) -> None:
        self._options = {"nfkc": nfkc, "collapse_whitespace": collapse, "ignore_case": lower}
        self._rows: dict[str, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, texts: Sequence[str]) -> IntArray:
        found = np.full(len(texts), -1, np.int64)
        for number, text in enumerate(texts):
            first = self._rows.setdefault(normalised(text, **self._options), self._size + number)
            if first != self._size + number:
                found[number] = first
        self._size += len(texts)
        return found


class _CompiledFirsts:
    """Fingerprints in an open-addressing table."""

    def __init__(self, nfkc: bool, collapse: bool, lower: bool, num_threads: int) -> None:
        self._options = {"nfkc": nfkc, "collapse_whitespace": collapse, "ignore_case": lower}
        self._num_threads = num_threads
        self._table = np.full(1 << 12, -1, np.int64)
        self._values = np.zeros((1 << 10, 2), np.uint64)
        self._firsts = np.zeros(1 << 10, np.bool_)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, texts: Sequence[str]) -> IntArray:
        from tunesmith.data.kernels import fingerprints
        from tunesmith.data.kernels.words import grown

        total = self._size + len(texts)
        self._values, self._firsts = grown(self._values, total), grown(self._firsts, total)
        if len(self._table) < 2 * total:
            self._table = np.full(1 << (2 * total - 1).bit_length(), -1, np.int64)
            fingerprints.refill(self._table, self._values, self._firsts, self._size)
        found = np.empty(len(texts), np.int64)
        for start, keys in map_chunks(texts, self._fingerprints, self._num_threads):
            part = found[start : start + len(keys)]
            fingerprints.insert(keys, self._values, self._table, self._size, part)
            self._firsts[self._size : self._size + len(keys)] = part < 0
            self._size += len(keys)
        return found

    def _fingerprints(self, start: int, texts: Sequence[str]) -> tuple[int, np.ndarray]:
        from tunesmith.data.kernels import fingerprints

        joined = "".join(texts)
        if joined.isascii():
            codes = np.frombuffer(joined.encode("ascii"), np.uint8)
            ascii_rows = np.ones(len(texts), np.bool_)
        else:
            ascii_rows = np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
            texts = [text if text.isascii() else normalised(text, **self._options) for text in texts]
            codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        collapse, lower = self._options["collapse_whitespace"], self._options["ignore_case"]
        return start, fingerprints.fingerprints(codes, offsets, ascii_rows, collapse, lower)
