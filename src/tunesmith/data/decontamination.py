"""Which texts contain evaluation items: the item, the share of it that is covered, and the span of the text.

    index = EvaluationIndex(items, ngram=8, long_ngram=13, num_threads=...)
    index.find(texts, max_coverage=0.5) -> Matches              48 bytes per text
    index.find_each(texts, max_coverage=0.5)                    chunk by chunk: (first row, texts, Matches of these)

A text is removed where n-grams of `ngram` words that it shares with an item cover more than `max_coverage` of the
item's words (Lambert et al. 2024, Tülu 3: 8 and one half), or where it shares any run of `long_ngram` words with one
(Brown et al. 2020, GPT-3: 13). An item of fewer than `ngram` words must stand in the text whole; one of fewer than
SHORTEST words must be the whole text, since "yes" or "5" stands in nearly every text. Words are unicode_tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np

from tunesmith.data.kernels import compiled, map_chunks
from tunesmith.data.kernels.plain import word_hash
from tunesmith.data.matches import Matches
from tunesmith.text.rouge import alphabet_of, character_spans, unicode_tokens

SHORTEST = 4

# With fewer texts and items in all, Python ends before the compiled loops are loaded (half a second), or once compiled
# (three).
COMPILED_FROM = 4000


class EvaluationIndex:
    """All items of the evaluation sets, by their n-grams."""

    def __init__(self, items: Sequence[str], *, ngram: int, long_ngram: int, num_threads: int) -> None:
        self._items = items
        self._ngram, self._long_ngram, self._num_threads = ngram, long_ngram, num_threads
        self._indexes: dict[bool, _Index] = {}  # compiled or not

    def find(self, texts: Iterable[str], *, max_coverage: float) -> Matches:
        """`dup_of` is the item that removes the text, `spans` the longest run they share, in characters of the text.

        `items` and `score` are given for texts that stay too: the item with the largest covered share, and the share.
        Reads the texts once and keeps none.
        """
        parts = [each for _, _, each in self.find_each(texts, max_coverage=max_coverage)]
        parts = parts or [self._index(fast=False).search([], max_coverage)]
        removed, spans = np.concatenate([each.dup_of for each in parts]), [each.spans for each in parts]
        return Matches(
            removed,
            np.concatenate([each.score for each in parts]),
            np.arange(len(removed)),
            spans=np.concatenate([each for each in spans if each is not None]),
            items=np.concatenate([each.items for each in parts if each.items is not None]),
        )

    def find_each(self, texts: Iterable[str], *, max_coverage: float) -> Iterator[tuple[int, list[str], Matches]]:
        """find, chunk after chunk: (number of the first text, the texts, what they hold)."""
        unread = iter(texts)
        begin = list(islice(unread, COMPILED_FROM))
        index = self._index(fast=compiled() and len(begin) + len(self._items) >= COMPILED_FROM)

        def search(start: int, chunk: list[str]) -> tuple[int, list[str], Matches]:
            return start, chunk, index.search(chunk, max_coverage)

        return map_chunks(chain(begin, unread), search, self._num_threads)

    def _index(self, *, fast: bool) -> _Index:
        if fast not in self._indexes:
            self._indexes[fast] = _Index(self._items, self._ngram, self._long_ngram, fast)
        return self._indexes[fast]


class _Index:
    """The n-grams in the form of one of the two searches."""

    def __init__(self, items: Sequence[str], ngram: int, long_ngram: int, fast: bool) -> None:
        alphabet = alphabet_of(unicode_tokens)
        assert alphabet is not None
        self._alphabet = alphabet
        self._ngram, self._long_ngram, self._fast = ngram, long_ngram, fast
        words, offsets = self._words(items)
        self._shortest = min(SHORTEST, ngram)
        self._grams = _build(words, offsets, ngram, self._shortest, fast)
        self._scratch: list[Any] = []  # of threads that are done with theirs
        self._whole: dict[bytes, int] = {}  # words of a very short item -> item
        for item in np.flatnonzero((np.diff(offsets) < self._shortest) & (np.diff(offsets) > 0)):
            self._whole.setdefault(words[offsets[item] : offsets[item + 1]].tobytes(), int(item))

    def search(self, texts: Sequence[str], max_coverage: float) -> Matches:
        """EvaluationIndex.find of one chunk."""
        words, offsets = self._words(texts)
        removed, items = np.full(len(texts), -1, np.int64), np.full(len(texts), -1, np.int64)
        coverages, runs = np.zeros(len(texts)), np.zeros((len(texts), 2), np.int64)
        settings = (self._ngram, self._long_ngram, max_coverage)
        if isinstance(self._grams, _PlainGrams):
            _search_plainly(words, offsets, self._grams, *settings, removed, items, coverages, runs)
        else:
            self._search_compiled(words, offsets, *settings, removed, items, coverages, runs)
        if self._whole:
            sizes = np.diff(offsets)
            for row in np.flatnonzero((sizes < self._shortest) & (sizes > 0)):
                item = self._whole.get(words[offsets[row] : offsets[row + 1]].tobytes(), -1)
                if item >= 0:
                    removed[row] = items[row] = item
                    coverages[row], runs[row] = 1.0, (0, sizes[row])
        spans = np.full((len(texts), 2), -1, np.int64)
        for row in np.flatnonzero(removed >= 0):
            spans[row] = character_spans(texts[int(row)], int(runs[row, 0]), int(runs[row, 1]))
        return Matches(removed, coverages, np.arange(len(texts)), spans=spans, items=items)

    def _search_compiled(self, words: np.ndarray, offsets: np.ndarray, *settings_and_answers: Any) -> None:
        """In arrays of the size of the evaluation sets, of which there is one set per thread."""
        from tunesmith.data.kernels import grams

        try:
            scratch = self._scratch.pop()
        except IndexError:  # another thread has it
            scratch = grams.scratch_for(self._grams)
        grams.search(words, offsets, self._grams, scratch, *settings_and_answers)
        self._scratch.append(scratch)

    def _words(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(word hashes (W,) uint64, word offsets (texts + 1,))."""
        if not self._fast:
            tokens = [[word_hash(word) for word in unicode_tokens(text)] for text in texts]
            offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
            return np.array([value for row in tokens for value in row], np.uint64), offsets
        from tunesmith.data.kernels.words import pack, split_words

        codes, offsets = pack(texts, self._alphabet)
        hashes, _, _, word_offsets = split_words(codes, offsets, self._alphabet.classes())
        return hashes, word_offsets


@dataclass(frozen=True)
class _PlainGrams:
    """The items' n-grams in a dictionary, where numba is missing."""

    items: list[list[int]]
    places: dict[tuple[int, ...], list[tuple[int, int]]]  # n-gram -> (item, first word)


def _build(words: np.ndarray, offsets: np.ndarray, ngram: int, shortest: int, fast: bool) -> Any:
    if fast:
        from tunesmith.data.kernels import grams

        return grams.build(words, offsets, ngram, shortest)
    items = [words[begin:end].tolist() for begin, end in pairwise(offsets)]
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, item in enumerate(items):
        length = min(ngram, len(item))
        for first in range(len(item) - length + 1) if length >= shortest else ():
            places.setdefault(tuple(item[first : first + length]), []).append((number, first))
    return _PlainGrams(items, places)


def _search_plainly(
    words: np.ndarray,
    offsets: np.ndarray,
    grams: _PlainGrams,
    ngram: int,
    long_ngram: int,
    max_coverage: float,
    removed: np.ndarray,
    items: np.ndarray,
    coverages: np.ndarray,
    runs: np.ndarray,
) -> None:
    """kernels.grams.search, one text after the other."""
    lengths = {len(gram) for gram in grams.places}
    for row, (begin, end) in enumerate(pairwise(offsets)):
        text = words[begin:end].tolist()
        found: dict[int, dict[tuple[int, int], int]] = {}  # item -> (place in text, in item) -> run that ends there
        for length in lengths:
            for place in range(len(text) - length + 1):
                for item, there in grams.places.get(tuple(text[place : place + length]), ()):
                    before = found.setdefault(item, {})
                    before[place, there] = before.get((place - 1, there - 1), length - 1) + 1
        keys = {}
        for item, hits in found.items():
            length = min(ngram, len(grams.items[item]))
            covered = {there + k for _, there in hits for k in range(length)}
            run = max(hits.values())
            last = min(place for (place, _), size in hits.items() if size == run) + length
            keys[item] = (len(covered) / len(grams.items[item]), run, -item, last)
        guilty = [key for key in keys.values() if key[0] > max_coverage or key[1] >= long_ngram]
        if keys:
            share, _, number, _ = max(keys.values())
            items[row], coverages[row] = -number, share
        if guilty:
            share, run, number, last = max(guilty)
            removed[row], coverages[row], runs[row] = -number, share, (last - run, last)
