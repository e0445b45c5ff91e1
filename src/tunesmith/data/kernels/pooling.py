"""Mean of some rows of a table of vectors, without a copy of each row. Knows no tokens and no texts."""

from __future__ import annotations

import numpy as np

from tunesmith.data.kernels.words import jit


def mean_rows(table: np.ndarray, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(R, D) float32: row r is the mean of the next sizes[r] rows of table (V, D) float32 that numbers (N,) name; zeros
    where that is none. Added up in order."""
    out = np.zeros((len(sizes), table.shape[1]), np.float32)
    _mean_rows(table, numbers, sizes, out)
    return out


@jit
def _mean_rows(table, numbers, sizes, out):
    at = 0
    for r in range(len(sizes)):
        total = out[r]
        for i in range(at, at + sizes[r]):
            row = table[numbers[i]]
            for d in range(len(total)):
                total[d] += row[d]
        if sizes[r] > 0:
            size = np.float32(sizes[r])
            for d in range(len(total)):
                total[d] /= size
        at += sizes[r]
