"""Clusters and the words that name them."""

from __future__ import annotations

import numpy as np

from tunesmith.data.atlas.clusters import MOST_CLUSTERS, find_clusters

TEXTS = ["Bake the bread in the oven"] * 6 + ["Ride your bicycle to the lake"] * 4
VECTORS = np.array([[1, 0, 0]] * 6 + [[0, 1, 0]] * 4, np.float32)


def test_the_largest_cluster_comes_first_and_words_that_all_rows_have_do_not_name_it() -> None:
    clusters = find_clusters(VECTORS, TEXTS, 2, 1)
    assert clusters.of.tolist() == [0] * 6 + [1] * 4
    assert clusters.names == ["bake, bread, oven", "ride, bicycle, lake"]


def test_the_number_of_clusters_grows_with_the_rows_up_to_as_many_as_there_are_colours() -> None:
    rng = np.random.default_rng(0)
    for count, expected in ((8, 2), (200, 10), (5_000, MOST_CLUSTERS)):
        vectors = rng.normal(size=(count, 12)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert len(find_clusters(vectors, ["text"] * count, None, 0).names) == expected


def test_two_clusters_of_the_same_words_have_different_names() -> None:
    clusters = find_clusters(VECTORS, ["42"] * 10, 2, 1)
    assert clusters.names == ["cluster 1", "cluster 2"]
    assert find_clusters(np.zeros((0, 3), np.float32), [], None, 0).names == []
