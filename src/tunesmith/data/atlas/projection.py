"""Vectors to points in space: PCA at once, UMAP (McInnes et al. 2018) after it.

UMAP itself is umap-learn's (extra `map`). It is given the neighbours, found here, and starts from the PCA: that spares
most of its compiling, makes the result the same on every machine with the same libraries, and keeps the large distances
as the PCA has them (Kobak and Linderman 2021).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from tunesmith.data.semantic import assign, kmeans
from tunesmith.errors import MissingExtra

UMAP_DIMENSIONS = 50
"""Main axes that UMAP sees. The rest of a 256-dimensional static embedding is noise to it, and costs five times the time."""

_NEIGHBOURS = 15  # umap-learn's own choice
_MIN_DIST = 0.1
_EPOCHS = 200  # umap-learn takes 500 below 10,000 rows; no difference to be seen at 7,473 rows of GSM8K
_FEWEST_ROWS = 12  # below, neighbourhoods are the whole set
_EXACT_UP_TO = 6_000  # rows whose neighbours are found by comparing all with all
_ROWS_PER_CELL = 400
_CELLS_SEARCHED = 8
_LARGEST_CELL = 8_192
_DISTANCES_AT_ONCE = 1 << 23


class Pca(NamedTuple):
    """Rows along the main axes of their cloud, the widest first, and the share of the variance each axis holds."""

    coordinates: np.ndarray  # (N, D) float32
    shares: np.ndarray  # (D,) float64


def pca(vectors: np.ndarray, num_dimensions: int) -> Pca:
    """Principal components of vectors (N, V). Missing axes (few rows, flat clouds) are zeros. Signs are fixed: the
    largest entry of each axis is positive."""
    if not len(vectors):
        return Pca(np.zeros((0, num_dimensions), np.float32), np.zeros(num_dimensions))
    centred = vectors.astype(np.float32) - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    variances, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    wanted = min(num_dimensions, vectors.shape[1])
    axes, variances = axes[:, ::-1][:, :wanted], np.maximum(variances[::-1], 0)
    largest = np.argmax(np.abs(axes), axis=0)
    axes = axes * np.sign(axes[largest, np.arange(wanted)])
    coordinates, shares = np.zeros((len(vectors), num_dimensions), np.float32), np.zeros(num_dimensions)
    coordinates[:, :wanted] = centred @ axes.astype(np.float32)
    shares[:wanted] = variances[:wanted] / max(variances.sum(), np.finfo(float).tiny)
    return Pca(coordinates, shares)


def why_no_umap(coordinates: np.ndarray) -> str | None:
    """The reason, for people, why these rows (N, D) have no UMAP; None where they have one."""
    if len(coordinates) < _FEWEST_ROWS:
        return f"UMAP needs at least {_FEWEST_ROWS} rows, there are {len(coordinates)}"
    num_places = len(np.unique(np.round(coordinates[:, :3], 5), axis=0))
    if num_places < _FEWEST_ROWS:
        return f"UMAP needs at least {_FEWEST_ROWS} rows that differ, there are {num_places}"
    return None


def umap_layout(coordinates: np.ndarray, rng_seed: int) -> np.ndarray:
    """Three UMAP coordinates (N, 3) float32 of rows along their main axes (N, D), as pca gives them.

    Cosine-like: distances are Euclidean between vectors of length 1. MissingExtra without umap-learn.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that TensorFlow is not here
            from umap import UMAP
    except ImportError as error:
        raise MissingExtra("umap-learn", "map", "the UMAP of a map") from error
    num_neighbours = min(_NEIGHBOURS, len(coordinates) - 1)
    indices, distances = nearest_neighbours(coordinates, num_neighbours, rng_seed)
    start: Any = coordinates[:, :3].astype(np.float32)
    layout = UMAP(
        n_components=3,
        n_neighbors=num_neighbours,
        min_dist=_MIN_DIST,
        n_epochs=_EPOCHS,
        init=start,
        random_state=rng_seed,
        n_jobs=1,
        precomputed_knn=(indices, distances),
        force_approximation_algorithm=True,  # below 4,096 rows it would set the given neighbours aside
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that new rows cannot be placed later; none will be
        return np.asarray(layout.fit_transform(coordinates), np.float32)


def nearest_neighbours(points: np.ndarray, num_neighbours: int, rng_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices (N, K) int32, Euclidean distances (N, K) float32) of the nearest points (N, D), itself first.

    Above 6,000 points only the eight nearest of N / 400 cells of k-means are searched, and some neighbours are missed.
    """
    count = len(points)
    indices = np.empty((count, num_neighbours), np.int32)
    distances = np.empty((count, num_neighbours), np.float32)
    everything = np.arange(count)
    everywhere = [(everything, everything)]
    for rows, candidates in _searches(points, num_neighbours, rng_seed) if count > _EXACT_UP_TO else everywhere:
        squares = np.einsum("nd,nd->n", points[candidates], points[candidates])
        place = np.searchsorted(candidates, rows)
        at_once = max(1, _DISTANCES_AT_ONCE // len(candidates))
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once]
            near = squares[None, :] - 2 * (points[block] @ points[candidates].T)  # squared distance less |block|^2
            near[np.arange(len(block)), place[start : start + at_once]] = -np.inf
            best = np.argpartition(near, num_neighbours - 1, axis=1)[:, :num_neighbours]
            order = np.argsort(np.take_along_axis(near, best, 1), axis=1, kind="stable")
            best = candidates[np.take_along_axis(best, order, 1)]
            indices[block] = best
            distances[block] = np.linalg.norm(points[best] - points[block][:, None, :], axis=2)
    return indices, distances


def _searches(points: np.ndarray, num_wanted: int, rng_seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows of a cell, sorted rows of the cells around it: at least `num_wanted`) for each cell."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    directions = (points / np.where(length > 0, length, 1)).astype(np.float32)
    centres = kmeans(directions, len(points) // _ROWS_PER_CELL, rng_seed)
    cell_of, _ = assign(directions, centres)
    order = np.argsort(cell_of, kind="stable")
    bounds = np.searchsorted(cell_of[order], np.arange(len(centres) + 1))
    members = [order[bounds[cell] : bounds[cell + 1]] for cell in range(len(centres))]
    occupied = np.array([cell for cell, rows in enumerate(members) if len(rows)])
    nearness = centres[occupied] @ centres[occupied].T
    searches: list[tuple[np.ndarray, np.ndarray]] = []
    for number, cell in enumerate(occupied):
        nearness[number, number] = np.inf  # its own rows in any case
        gathered: list[np.ndarray] = []
        for each in occupied[np.argsort(-nearness[number], kind="stable")]:
            if len(gathered) >= _CELLS_SEARCHED and sum(map(len, gathered)) >= num_wanted:
                break
            gathered.append(members[each])
        around = np.concatenate(gathered[1:])[:_LARGEST_CELL] if len(gathered) > 1 else np.zeros(0, np.int64)
        pieces = -(-len(members[cell]) // _LARGEST_CELL)  # thousands of equal rows are all in one cell
        for rows in np.array_split(members[cell], pieces):
            searches.append((rows, np.sort(np.concatenate([rows, around]))))
    return searches
