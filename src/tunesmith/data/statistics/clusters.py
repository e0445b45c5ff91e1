"""What a data set speaks about: k-means over static embeddings, each cluster named by the words that tell it apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.data.cluster_names import name_groups
from tunesmith.data.semantic import Embed, assign, kmeans

_NUM_WORDS = 5
_LONGEST = 2000
_TEXTS_AT_ONCE = 2048


@dataclass(frozen=True)
class Cluster:
    """Rows that lie together. `share` is that of the rows looked at; the example is the row nearest to the centre."""

    words: list[str]
    num: int
    share: float
    example: str


def find_clusters(texts: Sequence[str], *, embed: Embed, num_clusters: int, rng_seed: int) -> list[Cluster]:
    """At most num_clusters, the largest first; of few rows fewer. Rows without a known word are left out."""
    cut = [text[:_LONGEST] for text in texts]
    parts = [embed(cut[start : start + _TEXTS_AT_ONCE]) for start in range(0, len(cut), _TEXTS_AT_ONCE)]
    if not parts:
        return []
    vectors = np.concatenate(parts)
    known = np.flatnonzero(np.linalg.norm(vectors, axis=1) > 0)
    if not len(known):
        return []
    vectors, cut = vectors[known], [cut[row] for row in known.tolist()]
    centres = kmeans(vectors, max(1, min(num_clusters, len(cut) // 3)), rng_seed)
    part_of, nearness = assign(vectors, centres)
    present = [part for part in range(len(centres)) if np.any(part_of == part)]
    members = [np.flatnonzero(part_of == part) for part in present]
    names = name_groups([[cut[row] for row in rows.tolist()] for rows in members], _NUM_WORDS)
    clusters = [
        Cluster(words, len(rows), len(rows) / len(cut), cut[int(rows[np.argmax(nearness[rows])])])
        for words, rows in zip(names, members, strict=True)
    ]
    return sorted(clusters, key=lambda cluster: -cluster.num)
