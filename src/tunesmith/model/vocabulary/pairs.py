"""Neighbouring tokens of many words: how often each pair stands there, and what joining one changes. Numbers only.

Every join is a handful of array operations over the places of one pair, and all joins together touch each token once or
twice, so a corpus of some ten million tokens takes seconds.

Legend: N tokens of all different words end to end, W words, M places of one pair.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Key = int  # left id * 2**32 + right id
_SHIFT = 32
_NONE = -1


def ids_of(key: Key) -> tuple[int, int]:
    """(left id, right id)."""
    return key >> _SHIFT, key & ((1 << _SHIFT) - 1)


class Pairs:
    """Words as linked tokens. `counts` has the pairs that stand at least min_count times; a pair's count only falls, so
    what is below once is never wanted again."""

    def __init__(
        self, tokens: NDArray[np.int32], lengths: NDArray[np.int64], word_counts: NDArray[np.int64], min_count: int
    ) -> None:
        """tokens (N,): words end to end; lengths and word_counts (W,): tokens of each word, how often it occurs."""
        self.counts: dict[Key, int] = {}
        self._min_count = min_count
        self._places: dict[Key, NDArray[np.int64]] = {}  # where the pair stood when it came to be: left places, rising
        self._tokens = tokens.astype(np.int64)
        self._weights = np.repeat(word_counts.astype(np.int64), lengths)
        place = np.arange(len(tokens), dtype=np.int64)
        self._before, self._after = place - 1, place + 1  # neighbours' places, -1 at the ends of a word
        ends = np.cumsum(lengths)
        self._after[ends - 1] = _NONE
        self._before[ends - lengths] = _NONE
        self.num_tokens = int(self._weights.sum())
        for _ in self._enter(np.flatnonzero(self._after >= 0)):
            pass

    def join(self, key: Key, new_id: int) -> Iterator[Key]:
        """Put one token in the place of a pair, wherever it stands; yields the pairs that come to be, all of them with
        the new token. new_id must be new. Exhaust the iterator before the next call."""
        left = self._standing(key)
        right = self._after[left]
        outer_left, outer_right = self._before[left], self._after[right]
        self._leave(np.union1d(outer_left[outer_left >= 0], right[outer_right >= 0]))
        self._tokens[left], self._tokens[right] = new_id, _NONE
        self._after[left] = outer_right
        follows = outer_right >= 0
        self._before[outer_right[follows]] = left[follows]
        self.num_tokens -= int(self._weights[left].sum())
        self.counts.pop(key, None)
        outer_left = self._before[left]
        yield from self._enter(np.union1d(outer_left[outer_left >= 0], left[follows]))

    def _standing(self, key: Key) -> NDArray[np.int64]:
        """(M,) places where the pair still stands. Of a token that stands three times in a row, the first two pair."""
        first, second = ids_of(key)
        left = self._places.pop(key)
        left = left[self._tokens[left] == first]
        right = self._after[left]
        left = left[(right >= 0) & (self._tokens[right] == second)]
        if first != second or len(left) < 2:
            return left
        in_row = np.concatenate(([False], self._after[left[:-1]] == left[1:]))
        run_start = np.maximum.accumulate(np.where(in_row, 0, np.arange(len(left))))
        return left[(np.arange(len(left)) - run_start) % 2 == 0]

    def _keys(self, left: NDArray[np.int64]) -> NDArray[np.int64]:
        return (self._tokens[left] << _SHIFT) + self._tokens[self._after[left]]

    def _leave(self, left: NDArray[np.int64]) -> None:
        """The pairs at these places are about to go."""
        keys, inverse = np.unique(self._keys(left), return_inverse=True)
        lost = np.bincount(inverse, weights=self._weights[left], minlength=len(keys))  # exact below 2**53
        for key, count in zip(keys.tolist(), lost.tolist(), strict=True):
            if key in self.counts:
                self.counts[key] -= int(count)

    def _enter(self, left: NDArray[np.int64]) -> Iterator[Key]:
        """The pairs at these places have come to be."""
        if not len(left):
            return
        keys = self._keys(left)
        order = np.argsort(keys, kind="stable")
        keys, left = keys[order], left[order]
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        counts = np.add.reduceat(self._weights[left], starts)
        ends = np.append(starts[1:], len(left))
        often = counts >= self._min_count
        found = zip(keys[starts[often]].tolist(), counts[often].tolist(), starts[often], ends[often], strict=True)
        for key, count, start, end in found:
            self.counts[key] = count
            self._places[key] = left[start:end].copy()
            yield key
