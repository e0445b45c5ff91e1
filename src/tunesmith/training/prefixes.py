"""Shared beginnings: samples that start with the same tokens are laid out as a trie, each common part once.

A causal model gives the same hidden states to the same beginning, so computing it once is exact, for the loss and for every
gradient: what the branches send back to a shared row is summed there. Owns the trie and its layout as one row of tokens.
Refuses to know masks, targets, tensors and models.

Not for training with dropout (each sample would draw its own) or with layers that route by batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.training.segments import Segment, Segments

_SHORTEST_SHARED = 8
"""Tokens a beginning needs to be worth a segment of its own: below, the extra calls cost what the tokens save."""

WORTH_IT = 1.05
"""Ratio of tokens before to rows after, below which a plain layout is as fast and simpler."""


@dataclass(frozen=True)
class Layout:
    """Some samples as one row of tokens, R rows for their T tokens."""

    input_ids: NDArray[np.int64]  # (R,)
    position_ids: NDArray[np.int64]  # (R,) restart at 0 with every sample, go on where a beginning is shared
    segments: Segments
    row_of: tuple[NDArray[np.int64], ...]  # of each sample, in the order given: (its length,) the row of each token

    @property
    def ratio(self) -> float:
        """Tokens of the samples over rows computed, at least 1."""
        return sum(len(rows) for rows in self.row_of) / len(self.input_ids)


def lay_end_to_end(samples: Sequence[NDArray[np.integer]]) -> Layout:
    """Every sample whole, in the order given."""
    return _Builder(samples).finish([_Branch(0, len(ids), (index,)) for index, ids in enumerate(samples)])


def lay_as_trie(samples: Sequence[NDArray[np.integer]]) -> Layout:
    """Common beginnings of at least 8 tokens once, branches behind them, depth first."""
    return _Builder(samples).finish(_branches(samples))


@dataclass(frozen=True)
class _Branch:
    """Tokens start..end (positions) that all of `members` have in common, and what follows them."""

    start: int
    end: int
    members: tuple[int, ...]
    children: tuple[_Branch, ...] = ()


def _branches(samples: Sequence[NDArray[np.integer]]) -> list[_Branch]:
    # Big-endian bytes sort as the ids do, so samples with a common beginning become neighbours.
    order = sorted(range(len(samples)), key=lambda index: samples[index].astype(">u4").tobytes())
    ordered = [samples[index] for index in order]
    shared = [num_common(a, b) for a, b in itertools.pairwise(ordered)]  # between neighbours

    def grow(low: int, high: int, depth: int) -> list[_Branch]:
        """Branches of ordered[low:high], which agree up to `depth`."""
        if high - low == 1:
            length = len(ordered[low])
            return [_Branch(depth, length, (order[low],))] if length > depth else []
        least = min(shared[low : high - 1])
        cuts = [low, *(place + 1 for place in range(low, high - 1) if shared[place] == least), high]
        deep = least - depth >= _SHORTEST_SHARED
        below = [
            branch for start, end in itertools.pairwise(cuts) for branch in grow(start, end, least if deep else depth)
        ]
        return [_Branch(depth, least, tuple(order[low:high]), tuple(below))] if deep else below

    return grow(0, len(ordered), 0)


def num_common(a: NDArray[np.integer], b: NDArray[np.integer]) -> int:
    """Length of the common beginning of two samples."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class _Builder:
    """Lays branches down one after another."""

    def __init__(self, samples: Sequence[NDArray[np.integer]]) -> None:
        self._samples = samples
        self._ids: list[NDArray[np.int64]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._segments: list[Segment] = []
        self._row_of = [np.empty(len(ids), dtype=np.int64) for ids in samples]
        self._end = 0

    def finish(self, branches: Sequence[_Branch]) -> Layout:
        for branch in branches:
            self._lay(branch, ())
        return Layout(
            input_ids=np.concatenate(self._ids),
            position_ids=np.concatenate(self._positions),
            segments=tuple(self._segments),
            row_of=tuple(self._row_of),
        )

    def _lay(self, branch: _Branch, seen: tuple[tuple[int, int], ...]) -> None:
        length = branch.end - branch.start
        start, end = self._end, self._end + length
        self._end = end
        self._ids.append(self._samples[branch.members[0]][branch.start : branch.end].astype(np.int64))
        self._positions.append(np.arange(branch.start, branch.end, dtype=np.int64))
        self._segments.append(Segment(start, length, seen))
        for member in branch.members:
            self._row_of[member][branch.start : branch.end] = np.arange(start, end)
        for child in branch.children:
            self._lay(child, (*seen, (start, end)))
