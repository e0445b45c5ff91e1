"""Repetitions in a data set: equal rows over all of it, nearly equal ones in a sample. Counts and shows; removes nothing."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.exact import ExactIndex
from tunesmith.data.kernels import compiled
from tunesmith.data.minhash import find_near
from tunesmith.recipe.duplicate_filters import MinhashOptions

_NUM_SHOWN = 5
_MOST_TEXTS = 20_000
_LONGEST = 1000
_LONGEST_SHARED = 60
_BEFORE_DIFFERENCE = 30
_PLAIN_ROWS = 2000  # without numba the comparing is some hundred times slower


@dataclass(frozen=True)
class Repeated:
    """A text and how many rows have it."""

    text: str
    num: int


@dataclass(frozen=True)
class ExactDuplicates:
    """Rows whose text an earlier row has; `most` are the texts with the most rows."""

    num_rows: int
    num_repeats: int
    most: list[Repeated]


@dataclass(frozen=True)
class NearPair:
    """Two rows that are nearly equal, from shortly before their first difference on, and their Jaccard."""

    first: str
    second: str
    jaccard: float


@dataclass(frozen=True)
class NearDuplicates:
    """Near copies among the rows looked at: those that equal an earlier one (but for case and spaces) are not counted."""

    num_rows: int
    num_near: int
    min_jaccard: float
    pairs: list[NearPair]


class RepeatCounter:
    """Finds equal texts in chunks of rows: case, width and spacing are ignored. 16 bytes and a table entry per row."""

    def __init__(self, num_threads: int) -> None:
        self._index = ExactIndex(nfkc=True, collapse_whitespace=True, ignore_case=True, num_threads=num_threads)
        self._repeats = array("q")
        self._texts: dict[int, str] = {}

    def add(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        dup_of = self._index.add(texts).dup_of
        for place in np.flatnonzero(dup_of >= 0).tolist():
            first = int(dup_of[place])
            self._repeats.append(first)
            if first not in self._texts and len(self._texts) < _MOST_TEXTS:
                self._texts[first] = texts[place][:_LONGEST]

    def found(self) -> ExactDuplicates:
        most: list[Repeated] = []
        if self._repeats:
            firsts, counts = np.unique(np.frombuffer(self._repeats, np.int64), return_counts=True)
            for place in np.lexsort((firsts, -counts))[:_NUM_SHOWN].tolist():
                text = self._texts.get(int(firsts[place]), "(its text was not kept)")
                most.append(Repeated(text, int(counts[place]) + 1))
        return ExactDuplicates(len(self._index), len(self._repeats), most)


def near_duplicates(texts: Sequence[str], num_threads: int) -> NearDuplicates:
    """By MinHash with the filter's own settings; without numba of the first 2,000 texts."""
    options = MinhashOptions()
    texts = texts if compiled() else texts[:_PLAIN_ROWS]
    distinct = list({" ".join(text.casefold().split()): text for text in reversed(texts)}.values())[::-1]
    matches = find_near(
        distinct,
        threshold=options.min_jaccard,
        ngram=options.ngram_words,
        num_bands=options.num_bands,
        rows_per_band=options.rows_per_band,
        num_threads=num_threads,
        rng_seed=options.rng_seed,
    )
    near = np.flatnonzero(matches.dup_of >= 0)
    best: dict[int, int] = {}  # of a chain of copies its first and last may be unlike: the most alike pair is shown
    for row in near[np.argsort(-matches.score[near], kind="stable")].tolist():
        best.setdefault(int(matches.dup_of[row]), row)
    clusters = Counter(matches.dup_of[near].tolist())
    pairs = [
        NearPair(*_from_difference(distinct[first], distinct[best[first]]), float(matches.score[best[first]]))
        for first, _ in clusters.most_common(_NUM_SHOWN)
    ]
    return NearDuplicates(len(texts), len(near), options.min_jaccard, pairs)


def _from_difference(first: str, second: str) -> tuple[str, str]:
    """Both texts, cut; a long beginning that they share is left out."""
    pairs = zip(first, second, strict=False)
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    start = shared - _BEFORE_DIFFERENCE if shared > _LONGEST_SHARED else 0
    dots = "…" if start else ""
    return dots + first[start : start + _LONGEST], dots + second[start : start + _LONGEST]
