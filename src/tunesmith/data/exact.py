"""Texts that are equal after normalising. The first one stays and names the others.

    find_exact(texts, nfkc=..., collapse_whitespace=..., ignore_case=..., num_threads=...) -> Matches
    ExactIndex(nfkc=..., ...).add(texts) -> Matches      shard by shard, rows numbered through

Texts are read once and not kept: per row 17 bytes of fingerprint and 8 to 16 of table, and the 24 of the answer, so that
10 million rows take some 500 MB. Without numba the normalised texts themselves are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice
from operator import length_hint

import numpy as np

from tunesmith.data.kernels import compiled, map_chunks
from tunesmith.data.matches import IntArray, Matches, from_dup_of

# Fewer texts are done in Python before the compiled loops are loaded (half a second), or once compiled (three).
COMPILED_FROM = 20_000


def find_exact(
    texts: Iterable[str], *, nfkc: bool, collapse_whitespace: bool, ignore_case: bool, num_threads: int
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


class ExactIndex:
    """All texts seen so far, each by its fingerprint; the first COMPILED_FROM by themselves."""

    def __init__(self, *, nfkc: bool, collapse_whitespace: bool, ignore_case: bool, num_threads: int) -> None:
        self._options = (nfkc, collapse_whitespace, ignore_case)
        self._num_threads = num_threads
        self._firsts: _PlainFirsts | _CompiledFirsts = _PlainFirsts(*self._options)

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, texts: Iterable[str]) -> Matches:
        """Number the texts on from those before, and name for each the first row it repeats, in those numbers."""
        begin, unread, parts = len(self), iter(texts), []
        if isinstance(self._firsts, _PlainFirsts) and compiled():
            parts.append(self._firsts.add(islice(unread, max(0, COMPILED_FROM - begin))))
            if len(self) >= COMPILED_FROM:
                self._firsts = _CompiledFirsts(*self._options, self._num_threads, self._firsts)
        dup_of = np.concatenate([*parts, self._firsts.add(unread)])
        matches = from_dup_of(dup_of, (dup_of >= 0).astype(np.float64))
        matches.cluster[dup_of < 0] += begin
        return matches


class _PlainFirsts:
    """Normalised texts in a dictionary."""

    def __init__(self, nfkc: bool, collapse: bool, lower: bool) -> None:
        self._options = {"nfkc": nfkc, "collapse_whitespace": collapse, "ignore_case": lower}
        self.rows: dict[str, int] = {}  # normalised text -> first row
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, texts: Iterable[str]) -> IntArray:
        found: list[int] = []
        for text in texts:
            first = self.rows.setdefault(normalised(text, **self._options), self._size)
            found.append(first if first != self._size else -1)
            self._size += 1
        return np.array(found, np.int64)


class _CompiledFirsts:
    """Fingerprints in an open-addressing table."""

    def __init__(self, nfkc: bool, collapse: bool, lower: bool, num_threads: int, before: _PlainFirsts) -> None:
        """before: the rows so far."""
        self._options = {"nfkc": nfkc, "collapse_whitespace": collapse, "ignore_case": lower}
        self._num_threads = num_threads
        self._table = np.full(1 << 12, -1, np.int32)  # row numbers
        self._values = np.zeros((1 << 10, 2), np.uint64)
        self._firsts = np.zeros(1 << 10, np.bool_)
        self._size = 0
        self._make_room(len(before))
        rows, done = np.fromiter(before.rows.values(), np.int64, len(before.rows)), 0
        for keys in map_chunks(before.rows, self._fingerprints, num_threads):
            self._values[rows[done : done + len(keys)]] = keys
            done += len(keys)
        self._firsts[rows] = True
        self._size = len(before)
        self._fill()

    def __len__(self) -> int:
        return self._size

    def add(self, texts: Iterable[str]) -> IntArray:
        from tunesmith.data.kernels import fingerprints

        self._make_room(length_hint(texts))
        parts = [np.empty(0, np.int64)]
        for keys in map_chunks(texts, self._fingerprints, self._num_threads):
            self._make_room(len(keys))
            part = np.empty(len(keys), np.int64)
            fingerprints.insert(keys, self._values, self._table, self._size, part)
            self._firsts[self._size : self._size + len(keys)] = part < 0
            self._size += len(keys)
            parts.append(part)
        return np.concatenate(parts)

    def _make_room(self, more: int) -> None:
        from tunesmith.data.kernels.words import grown

        total = self._size + more
        self._values, self._firsts = grown(self._values, total), grown(self._firsts, total)
        if len(self._table) < 2 * total:
            self._table = np.full(1 << (2 * total - 1).bit_length(), -1, np.int32)
            self._fill()

    def _fill(self) -> None:
        from tunesmith.data.kernels import fingerprints

        fingerprints.refill(self._table, self._values, self._firsts, self._size)

    def _fingerprints(self, _: int, texts: list[str]) -> np.ndarray:
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
        return fingerprints.fingerprints(codes, offsets, ascii_rows, collapse, lower)
