"""Lengths as distributions: every length is kept as a number of 4 bytes, so the quantiles are exact. Knows no texts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_NUM_BINS = 20
_MOST = (1 << 32) - 1


@dataclass(frozen=True)
class Bin:
    """How many lengths are in [low, high)."""

    low: int
    high: int
    num: int


@dataclass(frozen=True)
class Distribution:
    """Lengths in one unit. A quantile is the smallest length that so many rows do not exceed. The last bin holds all above it
    too."""

    num: int
    total: int
    min: int
    median: int
    mean: float
    p90: int
    p99: int
    max: int
    bins: list[Bin]


class Lengths:
    """Collects lengths; a length above 2^32 counts as that."""

    def __init__(self) -> None:
        self._values = array("I")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, values: Iterable[int]) -> None:
        self._values.extend(min(value, _MOST) for value in values)

    def summary(self) -> Distribution | None:
        """None where nothing was measured."""
        if not self._values:
            return None
        values = np.sort(np.frombuffer(self._values, np.uint32))
        p50, p90, p99 = (int(value) for value in np.quantile(values, (0.5, 0.9, 0.99), method="inverted_cdf"))
        return Distribution(
            num=len(values),
            total=int(values.sum(dtype=np.uint64)),
            min=int(values[0]),
            median=p50,
            mean=float(values.mean(dtype=np.float64)),
            p90=p90,
            p99=p99,
            max=int(values[-1]),
            bins=_bins(values, p99),
        )


def _bins(values: np.ndarray, p99: int) -> list[Bin]:
    """At most 20 bins of equal width between the smallest length and the 99th percentile: one long row in a hundred
    would press all others into the first bin."""
    low = int(values[0])
    width = max(1, -(-(p99 + 1 - low) // _NUM_BINS))
    edges = [low + width * index for index in range(-(-(p99 + 1 - low) // width) + 1)]
    edges = edges if len(edges) > 1 else [low, low + 1]
    counts = np.diff(np.searchsorted(values, edges))
    counts[-1] += len(values) - np.searchsorted(values, edges[-1])
    return [Bin(start, end, int(num)) for start, end, num in zip(edges, edges[1:], counts, strict=False)]
