"""Texts that mean the same: SemDeDup (Abbas et al. 2023) over any embedding.

    find_semantic(texts, embed=..., threshold=..., keep=..., num_clusters=..., rng_seed=...) -> Matches
    find_semantic_vectors(vectors, threshold=..., keep=..., num_clusters=..., rng_seed=...) -> Matches
    wordllama_embedder() -> Embed                       static vectors that ship in a wheel (extra `semantic`)

k-means parts the vectors; within a part, in the order that `keep` gives, a text goes where its cosine to an earlier
one is above the threshold. Unlike the paper's code only texts that stay count as earlier, so each removed text names
one that is really there. The texts are read once; their vectors lie on disk (4 bytes per dimension), and memory holds a
sample of them for the centres, 40 bytes per row, and one block of cosines at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from tunesmith.data.disk_array import DiskArray
from tunesmith.data.kernels import chunked, compiled
from tunesmith.data.matches import Matches, from_dup_of
from tunesmith.errors import MissingExtra

Embed = Callable[[Sequence[str]], np.ndarray]
"""(N,) texts -> (N, D) float32, rows of length 1."""

Keep = Literal["first", "hard", "easy"]
"""Who stays: first = the earlier row; hard = the one farther from the centre of its part (SemDeDup's choice); easy = the
nearer one. Of equals the earlier row."""

_COMPILED_FROM = 2000  # texts in a chunk; fewer are averaged before the compiled loop is loaded
_BLOCK = 1024  # vectors compared at once
_ROWS_PER_CLUSTER = 2048
_SAMPLES_PER_CLUSTER = 256  # as FAISS: more rows do not move the centres
_ITERATIONS = 20


def find_semantic(
    texts: Iterable[str],
    *,
    embed: Embed,
    threshold: float,
    keep: Keep,
    num_clusters: int | None,
    rng_seed: int,
    folder: Path | None = None,
) -> Matches:
    """Each text of cosine above `threshold` with one that stays names the nearest such text. num_clusters None = one
    for each 2,048 rows. folder: for the temporary file of the vectors, None = the system's."""
    with DiskArray(np.float32, folder) as stored:
        width = 1
        for _, chunk in chunked(texts):
            vectors = embed(chunk)
            width = vectors.shape[1]
            stored.append(vectors)
        vectors = stored.read().reshape(-1, width)
    return find_semantic_vectors(vectors, threshold=threshold, keep=keep, num_clusters=num_clusters, rng_seed=rng_seed)


def find_semantic_vectors(
    vectors: np.ndarray, *, threshold: float, keep: Keep, num_clusters: int | None, rng_seed: int
) -> Matches:
    """find_semantic of vectors (N, D) of length 1. A vector of zeros (no known word) is near nothing."""
    count = min(num_clusters or -(-len(vectors) // _ROWS_PER_CLUSTER), len(vectors))
    centres = kmeans(vectors, count, rng_seed) if count else np.zeros((0, vectors.shape[1]), np.float32)
    part_of, nearness = assign(vectors, centres)
    dup_of, score = np.full(len(vectors), -1, np.int64), np.zeros(len(vectors))
    for part in range(count):
        rows = np.flatnonzero(part_of == part)
        if keep != "first":
            rows = rows[np.argsort(nearness[rows] if keep == "hard" else -nearness[rows], kind="stable")]
        _thin(vectors, rows, threshold, dup_of, score)
    return from_dup_of(dup_of, score)


def kmeans(vectors: np.ndarray, num_clusters: int, rng_seed: int) -> np.ndarray:
    """Centres (num_clusters, D) of length 1 by spherical k-means over a sample; starts from vectors drawn at random."""
    rng = np.random.Generator(np.random.PCG64(rng_seed))
    size = min(len(vectors), num_clusters * _SAMPLES_PER_CLUSTER)
    sample = vectors[np.sort(rng.permutation(len(vectors))[:size])]
    centres = sample[np.sort(rng.permutation(size)[:num_clusters])].copy()
    if num_clusters == 1:
        return _to_length_one(vectors.mean(axis=0, keepdims=True, dtype=np.float64))
    before = None
    for _ in range(_ITERATIONS):
        part_of, _ = assign(sample, centres)
        if before is not None and np.array_equal(part_of, before):
            break
        before = part_of
        order = np.argsort(part_of, kind="stable")
        present, begins = np.unique(part_of[order], return_index=True)
        # A centre that lost all its vectors stays where it was.
        centres[present] = _to_length_one(np.add.reduceat(sample[order], begins, axis=0))
    return centres


def assign(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(nearest centre (N,) int64, cosine to it (N,) float32)."""
    part_of, nearness = np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = vectors[block] @ centres.T
        part_of[block] = np.argmax(cosines, axis=1)
        nearness[block] = np.max(cosines, axis=1)
    return part_of, nearness


def _thin(vectors: np.ndarray, rows: np.ndarray, threshold: float, dup_of: np.ndarray, score: np.ndarray) -> None:
    """Walk the rows of one part in order: each is compared with the rows before it that stay."""
    kept = np.empty(0, np.int64)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        best, of = np.full(len(block), -np.inf), np.full(len(block), -1, np.int64)
        for begin in range(0, len(kept), _BLOCK):
            earlier = kept[begin : begin + _BLOCK]
            cosines = vectors[block] @ vectors[earlier].T
            nearest = np.argmax(cosines, axis=1)
            value = cosines[np.arange(len(block)), nearest]
            better = value > best
            best[better], of[better] = value[better], earlier[nearest[better]]
        among = vectors[block] @ vectors[block].T
        stays = np.zeros(len(block), np.bool_)
        for i in range(len(block)):
            inside = np.flatnonzero(stays[:i])
            if len(inside):
                j = inside[np.argmax(among[i, inside])]
                if among[i, j] > best[i]:
                    best[i], of[i] = among[i, j], block[j]
            if best[i] > threshold:
                dup_of[block[i]], score[block[i]] = of[i], min(1.0, float(best[i]))
            else:
                stays[i] = True
        kept = np.concatenate([kept, block[stays]])


def _to_length_one(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def wordllama_embedder() -> Embed:
    """The 256-dimensional static vectors inside the wordllama wheel, read from the installed package alone."""
    try:
        import wordllama
    except ImportError as error:
        raise MissingExtra("wordllama", "semantic", "embedding texts") from error
    model = wordllama.WordLlama.load(cache_dir=Path(str(wordllama.__file__)).parent, disable_download=True)
    table = np.ascontiguousarray(model.embedding, np.float32)
    model.tokenizer.no_padding()

    def embed(texts: Sequence[str]) -> np.ndarray:
        # Its own embed() copies the vector of every token, of padding too.
        encoded = model.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        sizes = np.fromiter((len(each.ids) for each in encoded), np.int64, len(encoded))
        numbers = np.fromiter(chain.from_iterable(each.ids for each in encoded), np.int64, int(sizes.sum()))
        means = _mean_rows(len(texts))(table, np.minimum(numbers, len(table) - 1), sizes)
        return _to_length_one(means)

    return embed


def _mean_rows(num_texts: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    if compiled() and num_texts >= _COMPILED_FROM:
        from tunesmith.data.kernels import pooling

        return pooling.mean_rows
    from tunesmith.data.kernels import plain

    return plain.mean_rows
