"""BELLE's likeness: the Okapi BM25 score of an instruction against the ones before it (Robertson & Zaragoza 2009)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from tunesmith.data.filters.parts import text_of
from tunesmith.data.rows import map_rows
from tunesmith.protocols import FilterContext, Verdict
from tunesmith.recipe.duplicate_filters import Bm25Options
from tunesmith.text.rouge import unicode_tokens
from tunesmith.types import Conversation

_K1, _B = 1.5, 0.75
_FLOOR = 0.25
"""A word in more than half of the texts has a negative weight in the formula; it gets this share of the mean weight, as
in gensim's BM25, which BELLE used."""


class Bm25Pool:
    """A growing pool of texts with an inverted index: one query touches the texts that share a word with it."""

    def __init__(self) -> None:
        self._postings: dict[str, list[tuple[int, int]]] = {}  # word -> (text, times)
        self._lengths: list[int] = []
        self._num_words = 0

    def add(self, words: list[str]) -> None:
        """Put a text into the pool."""
        for word, times in Counter(words).items():
            self._postings.setdefault(word, []).append((len(self._lengths), times))
        self._lengths.append(len(words))
        self._num_words += len(words)

    def nearest(self, words: list[str]) -> tuple[float, int]:
        """(highest score, index of its text), (0.0, -1) where nothing is shared."""
        size = len(self._lengths)
        found = {word: self._postings[word] for word in words if word in self._postings}
        if not found:
            return 0.0, -1
        weights = {word: math.log((size - len(texts) + 0.5) / (len(texts) + 0.5)) for word, texts in found.items()}
        positive = [weight for weight in weights.values() if weight > 0]
        floor = _FLOOR * (sum(positive) / len(positive) if positive else 0.0)
        mean_length = self._num_words / size
        scores: dict[int, float] = {}
        for word, times_asked in Counter(words).items():
            weight = max(weights.get(word, 0.0), floor) * times_asked
            for text, times in found.get(word, ()):
                share = times * (_K1 + 1) / (times + _K1 * (1 - _B + _B * self._lengths[text] / mean_length))
                scores[text] = scores.get(text, 0.0) + weight * share
        best = max(scores, key=lambda text: (scores[text], -text))
        return scores[best], best


class Bm25:
    """Reason bm25. The score grows with the pool, so the threshold means most for pools of some hundred texts and more."""

    def __init__(self, options: Bm25Options, _ctx: FilterContext) -> None:
        self._max_score = options.max_score

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        pool = Bm25Pool()
        members: list[int] = []  # the row of each text of the pool
        for place, words in enumerate(map_rows(_instruction_words, rows)):
            score, nearest = pool.nearest(words)
            if score > self._max_score:
                other = rows[members[nearest]]
                yield "bm25", f"BM25 {score:.2f} with {other.place}, allowed is {self._max_score:g}"
            else:
                pool.add(words)
                members.append(place)
                yield None


def _instruction_words(row: Conversation) -> list[str]:
    return unicode_tokens(text_of(row, "instruction"))
