"""Parts of the cloud and their names: k-means over the vectors, and the words that tell a part from the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tunesmith.data.cluster_names import name_groups
from tunesmith.data.semantic import assign, kmeans

MOST_CLUSTERS = 24
"""More colours than this cannot be told apart."""

_WORDS_PER_NAME = 3


class Clusters(NamedTuple):
    """The largest cluster first."""

    of: np.ndarray  # (N,) int64, index into names
    names: list[str]


def find_clusters(vectors: np.ndarray, texts: Sequence[str], num_clusters: int | None, rng_seed: int) -> Clusters:
    """Clusters of vectors (N, D) of length 1, named by their texts. num_clusters None = sqrt(N / 2), at most 24.

    Empty clusters are left out, so there may be fewer than asked for.
    """
    if not len(vectors):
        return Clusters(np.zeros(0, np.int64), [])
    wanted = num_clusters or min(MOST_CLUSTERS, max(1, round(math.sqrt(len(vectors) / 2))))
    part_of, _ = assign(vectors, kmeans(vectors, min(wanted, len(vectors)), rng_seed))
    parts, sizes = np.unique(part_of, return_counts=True)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    of = rank[np.searchsorted(parts, part_of)].astype(np.int64)
    return Clusters(of, _names(texts, of, len(parts)))


def _names(texts: Sequence[str], of: np.ndarray, count: int) -> list[str]:
    groups: list[list[str]] = [[] for _ in range(count)]
    for text, part in zip(texts, of, strict=True):
        groups[part].append(text)
    names: list[str] = []
    for part, words in enumerate(name_groups(groups, _WORDS_PER_NAME), 1):
        name = ", ".join(words) or f"cluster {part}"
        names.append(f"{name} ({part})" if name in names else name)
    return names
