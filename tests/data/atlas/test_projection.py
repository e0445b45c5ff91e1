"""PCA against numpy's SVD, neighbours against all distances, UMAP on clouds that are really apart."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from tunesmith.data.atlas import projection
from tunesmith.data.atlas.projection import nearest_neighbours, pca, umap_layout, why_no_umap
from tunesmith.errors import MissingExtra


def _clouds(num_rows: int, num_clouds: int, width: int = 32, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    of = np.arange(num_rows) % num_clouds
    centres = rng.normal(size=(num_clouds, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[of] + rng.normal(scale=spread / np.sqrt(width), size=(num_rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), of


def test_pca_gives_the_axes_of_the_singular_value_decomposition() -> None:
    vectors, _ = _clouds(300, 5)
    found = pca(vectors, 4)
    _, singular, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = (vectors - vectors.mean(axis=0)) @ axes[:4].T
    assert np.abs(np.abs(found.coordinates) - np.abs(expected)).max() < 1e-4
    assert found.shares == pytest.approx(singular[:4] ** 2 / (singular**2).sum(), rel=1e-4)


def test_pca_of_one_row_or_equal_rows_is_the_origin() -> None:
    for count in (0, 1, 4):
        found = pca(np.ones((count, 8), np.float32), 10)
        assert found.coordinates.shape == (count, 10) and not found.coordinates.any()


def test_the_signs_of_the_axes_do_not_depend_on_the_order_of_the_rows() -> None:
    vectors, _ = _clouds(200, 4)
    order = np.random.default_rng(0).permutation(200)
    assert np.allclose(pca(vectors, 3).coordinates[order], pca(vectors[order], 3).coordinates, atol=1e-4)


def test_neighbours_are_those_of_all_distances() -> None:
    points = np.random.default_rng(1).normal(size=(400, 6)).astype(np.float32)
    indices, distances = nearest_neighbours(points, 7, 0)
    everything = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.array_equal(indices[:, 0], np.arange(400)) and not distances[:, 0].any()
    assert np.allclose(distances, np.sort(everything, axis=1)[:, :7], atol=1e-4)


def test_of_many_points_nearly_all_neighbours_are_found_by_cells() -> None:
    vectors, _ = _clouds(7_000, 40, spread=0.8)
    points = pca(vectors, 16).coordinates
    indices, _ = nearest_neighbours(points, 10, 0)
    sample = np.arange(0, 7_000, 70)
    squares = (points**2).sum(axis=1)
    near = np.argsort(squares[None] - 2 * points[sample] @ points.T, axis=1)[:, :10]
    hits = np.mean([len(set(found) & set(true)) / 10 for found, true in zip(indices[sample], near, strict=True)])
    assert hits > 0.9
    assert np.array_equal(indices[:, 0], np.arange(7_000))


def test_equal_points_do_not_leave_a_cell_without_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_EXACT_UP_TO", 200)
    monkeypatch.setattr(projection, "_ROWS_PER_CELL", 20)
    monkeypatch.setattr(projection, "_LARGEST_CELL", 100)
    points = np.zeros((650, 4), np.float32)
    points[:, 0] = 1
    points[:30] = np.random.default_rng(0).normal(size=(30, 4))
    indices, distances = nearest_neighbours(points, 15, 0)
    assert np.array_equal(indices[:, 0], np.arange(650)) and not distances[30:].any()
    assert all(len(set(row)) == 15 for row in indices.tolist())


def test_too_few_rows_or_equal_rows_have_no_umap_and_the_reason_is_told() -> None:
    assert why_no_umap(np.random.default_rng(0).normal(size=(11, 50))) == "UMAP needs at least 12 rows, there are 11"
    assert "differ, there are 1" in (why_no_umap(np.ones((40, 50))) or "")
    assert why_no_umap(np.random.default_rng(0).normal(size=(12, 50))) is None


def test_a_missing_umap_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra) as caught:
        umap_layout(np.zeros((20, 3), np.float32), 0)
    assert "tunesmith[map]" in (caught.value.hint or "")


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_keeps_neighbours_together_and_is_the_same_twice() -> None:
    vectors, of = _clouds(240, 4)
    coordinates = pca(vectors, 20).coordinates
    layout = umap_layout(coordinates, 5)
    indices, _ = nearest_neighbours(layout, 6, 0)
    assert np.mean(of[indices[:, 1:]] == of[:, None]) > 0.98
    assert np.array_equal(layout, umap_layout(coordinates, 5))
