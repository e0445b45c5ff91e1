"""The compiled pool of novelty: owns the arrays that tunesmith.data.kernels.rouge works on, and their growth.

The prefix index is made for one threshold and one order of the words. A lower threshold makes it anew; so does every
doubling of the words seen or of the pool, because the order (rare words first) is what makes the prefixes selective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.kernels import pool_arrays, rouge
from tunesmith.data.kernels.words import Vocabulary
from tunesmith.text.rouge import Alphabet

_TEXTS_AT_ONCE = 1 << 16
_LARGEST_TABULATED = 64


class CompiledPool:
    """A growing pool of texts; every score is that of the plain loop over it."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._vocabulary = Vocabulary()
        self._rows = pool_arrays.empty_rows()
        self._size = 0
        self._postings: pool_arrays.Postings | None = None
        self._indexed = 0  # pool rows [0, indexed) are in the postings
        self._threshold = 1.0
        self._refresh_at = (0, 0)  # rows, words seen: where the order of the words is made anew
        self._table: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # needs of short texts
        self._table_threshold = 1.0
        self._scratch: pool_arrays.Scratch | None = None
        self._queries = 0

    def __len__(self) -> int:
        return self._size

    def add_all(self, texts: Sequence[str]) -> None:
        """Put texts into the pool, whatever they repeat."""
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            words, offsets = self._vocabulary.number(texts[start : start + _TEXTS_AT_ONCE], self._alphabet)
            self._make_room(len(offsets) - 1, len(words))
            for text in range(len(offsets) - 1):
                rouge.append_row(words[offsets[text] : offsets[text + 1]], self._size, self._rows)
                self._size += 1

    def nearest(self, text: str) -> tuple[float, int]:
        """(highest F1, lowest row that has it) over the whole pool, which is not empty."""
        words, offsets = self._vocabulary.number([text], self._alphabet)
        if not len(words):
            return 0.0, 0
        row, score = rouge.nearest_row(words, self._size, self._rows, self._scratch_for(offsets))
        return float(score), int(row)

    def search(self, texts: Sequence[str], threshold: float, *, add: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each text the nearest pool row above the threshold: (row or -1, its F1 or 0, the text's own row or -1).

        With `add`, texts without such a row enter the pool before the next one is looked up.
        """
        found, scores = np.full(len(texts), -1, np.int64), np.zeros(len(texts))
        own = np.full(len(texts), -1, np.int64)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = slice(start, start + _TEXTS_AT_ONCE)
            before = self._size
            self._search(texts[part], threshold, add, found[part], scores[part])
            if add:
                novel = np.flatnonzero(found[part] < 0)
                own[part][novel] = before + np.arange(len(novel))
        return found, scores, own

    def _search(self, texts: Sequence[str], threshold: float, add: bool, found: np.ndarray, scores: np.ndarray) -> None:
        words, offsets = self._vocabulary.number(texts, self._alphabet)
        if add:
            self._make_room(len(texts), len(words))
        scratch = self._scratch_for(offsets)
        longest = int(np.max(np.diff(offsets), initial=0))
        done = 0
        while done < len(texts):
            postings, table = self._prepare(threshold, longest)
            done, self._size, why = rouge.search_rows(
                words, offsets, done, self._size, self._refresh_at[0], add, threshold, table,
                self._rows, postings, scratch, self._queries, found, scores,
            )  # fmt: skip
            if add:
                self._indexed = self._size
            if why == rouge.FULL:
                self._postings = pool_arrays.with_more_room(postings, longest)
        self._queries += len(texts)

    def _prepare(self, threshold: float, longest: int) -> tuple[pool_arrays.Postings, tuple[np.ndarray, ...]]:
        """The postings with every pool row in them, for this threshold or a lower one."""
        seen = int(self._vocabulary.counts.sum())
        stale = self._size >= self._refresh_at[0] or seen >= self._refresh_at[1]
        if self._postings is None or threshold < self._threshold or stale:
            self._postings = pool_arrays.empty_postings(self._vocabulary.counts[: self._vocabulary.size])
            self._indexed = 0
            self._threshold = threshold
            self._refresh_at = (max(1024, 2 * self._size), max(1 << 14, 2 * seen))
        if self._table is None or self._table_threshold != threshold:
            self._table = rouge.tabulate_needs(threshold, _LARGEST_TABULATED)
            self._table_threshold = threshold
        self._postings = pool_arrays.with_vocabulary(self._postings, self._vocabulary.size)
        while self._indexed < self._size:
            self._indexed = rouge.index_rows(self._indexed, self._size, self._threshold, self._rows, self._postings)
            if self._indexed < self._size:
                row = self._rows.offsets[self._indexed : self._indexed + 2]
                self._postings = pool_arrays.with_more_room(self._postings, int(row[1] - row[0]))
        return self._postings, self._table

    def _make_room(self, num_rows: int, num_words: int) -> None:
        words = int(self._rows.offsets[self._size]) + num_words
        self._rows = pool_arrays.with_room(self._rows, self._size + num_rows, words)

    def _scratch_for(self, offsets: np.ndarray) -> pool_arrays.Scratch:
        longest = int(np.max(np.diff(offsets), initial=1))
        self._scratch = pool_arrays.scratch_for(self._scratch, self._vocabulary.size, longest)
        return self._scratch
