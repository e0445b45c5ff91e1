"""The one answer of every search for repetitions: exact, near, semantic, novelty, contamination. Knows no rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Matches:
    """What each row repeats: arrays of one entry per row, in the order of the rows.

    A row stays where `dup_of` is -1. Otherwise `dup_of` names the row that stays in its place (in decontamination: the
    evaluation item), and `score` how alike the two are, in [0, 1].
    """

    dup_of: IntArray
    score: FloatArray
    cluster: IntArray  # the staying row that names the row's cluster; its own index where it repeats nothing
    estimate: FloatArray | None = None  # MinHash: Jaccard as the signatures estimate it
    spans: IntArray | None = None  # decontamination: (rows, 2), characters [start, end) of the row's text
    items: IntArray | None = None  # decontamination: the item with the largest share in the row, -1 for none

    @property
    def kept(self) -> IntArray:
        """Indices of the rows that stay, ascending."""
        return np.flatnonzero(self.dup_of < 0).astype(np.int64)

    @property
    def num_duplicates(self) -> int:
        """How many rows do not stay."""
        return int(np.count_nonzero(self.dup_of >= 0))

    def __len__(self) -> int:
        return len(self.dup_of)


def from_dup_of(dup_of: IntArray, score: FloatArray, estimate: FloatArray | None = None) -> Matches:
    """Matches in which each cluster is named by the row that stays."""
    return Matches(dup_of, score, np.where(dup_of < 0, np.arange(len(dup_of)), dup_of), estimate)
