"""Texts that are nearly equal: MinHash (Broder 1997) with banding, each candidate verified by its true Jaccard.

    find_near(texts, threshold=..., ngram=..., num_bands=..., rows_per_band=..., num_threads=..., rng_seed=...) -> Matches

Shingles are n words in a row, and n characters in a row where a text has fewer words; characters of unspaced scripts
are words. Two texts become candidates where all permutations of one band agree, pairs of Jaccard >= threshold are
united, and the first row of each cluster stays. In a chain a ~ b ~ c the score of c is its Jaccard with a, which may be
under the threshold. Memory: 4 bytes per row and band, 32 per row besides; signatures live for one chunk of rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

from tunesmith.data.kernels import compiled, map_chunks
from tunesmith.data.matches import FloatArray, IntArray, Matches, from_dup_of
from tunesmith.text.rouge import alphabet_of, unicode_tokens

# In a bucket each row is compared with its first row and this many before it: all pairs of a bucket of 100,000 rows
# that share a template would never end, and the other bands bring together what one band keeps apart.
_WINDOW = 8
_PAIRS_AT_ONCE = 1 << 16


def find_near(
    texts: Sequence[str],
    *,
    threshold: float,
    ngram: int,
    num_bands: int,
    rows_per_band: int,
    num_threads: int,
    rng_seed: int,
) -> Matches:
    """Each text of Jaccard >= `threshold` with another of its cluster names the cluster's first text.

    num_bands * rows_per_band permutations; a pair of Jaccard j is found with probability
    1 - (1 - j^rows_per_band)^num_bands.
    """
    search = _Search(texts, ngram, num_bands, rows_per_band, num_threads, rng_seed)
    keys, whole = search.sign()
    pairs = _equal_pairs(whole)
    first = np.ones(len(texts), np.bool_)
    first[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)] = False  # a copy finds nothing that its original does not
    candidates = [_bucket_pairs(keys[band], first) for band in range(num_bands)]
    pairs = np.unique(np.concatenate([pairs, *candidates]))
    left, right = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
    jaccard, _ = search.compare(left, right)
    dup_of = _clusters(len(texts), left, right, jaccard >= threshold)
    score, estimate = np.zeros(len(texts)), np.zeros(len(texts))
    rows = np.flatnonzero(dup_of >= 0).astype(np.int64)
    score[rows], estimate[rows] = search.compare(dup_of[rows], rows)
    return from_dup_of(dup_of, score, estimate)


def _loops() -> ModuleType:
    if compiled():
        from tunesmith.data.kernels import shingles

        return shingles
    from tunesmith.data.kernels import plain

    return plain


class _Search:
    """The texts and what is computed from them, chunk by chunk."""

    def __init__(
        self, texts: Sequence[str], ngram: int, num_bands: int, rows_per_band: int, num_threads: int, rng_seed: int
    ) -> None:
        alphabet = alphabet_of(unicode_tokens)
        assert alphabet is not None
        rng = np.random.Generator(np.random.PCG64(rng_seed))
        count = num_bands * rows_per_band
        self._texts, self._alphabet, self._ngram = texts, alphabet, ngram
        self._num_bands, self._num_threads = num_bands, num_threads
        self._multipliers = rng.integers(0, 1 << 32, count, np.uint32) | np.uint32(1)  # odd: a permutation of 2^32
        self._addends = rng.integers(0, 1 << 32, count, np.uint32)

    def sign(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys (bands, rows) uint32, whole (rows,) uint64 equal where all permutations are)."""
        shingles = _loops()

        keys = np.empty((self._num_bands, len(self._texts)), np.uint32)
        whole = np.empty(len(self._texts), np.uint64)

        def sign_chunk(start: int, texts: Sequence[str]) -> None:
            _, _, signatures = self._signatures(texts)
            part = slice(start, start + len(texts))
            shingles.band_keys(signatures, self._num_bands, keys[:, part], whole[part])

        for _ in map_chunks(self._texts, sign_chunk, self._num_threads):
            pass
        return keys, whole

    def compare(self, left: IntArray, right: IntArray) -> tuple[FloatArray, FloatArray]:
        """(true Jaccard, estimated Jaccard) of each pair of rows."""
        shingles = _loops()

        jaccard, estimate = np.empty(len(left)), np.empty(len(left))
        order = np.argsort(left, kind="stable")

        def compare_part(begin: int) -> None:
            part = order[begin : begin + _PAIRS_AT_ONCE]
            rows, places = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
            hashes, offsets, signatures = self._signatures([self._texts[int(row)] for row in rows])
            sizes = np.empty(len(rows), np.int64)
            shingles.sort_sets(hashes, offsets, sizes)
            true, estimated = np.empty(len(part)), np.empty(len(part))
            a, b = places[: len(part)], places[len(part) :]
            shingles.compare(hashes, offsets, sizes, signatures, a, b, true, estimated)
            jaccard[part], estimate[part] = true, estimated

        begins = range(0, len(left), _PAIRS_AT_ONCE)
        if self._num_threads > 1 and len(begins) > 1:
            with ThreadPoolExecutor(self._num_threads) as pool:
                list(pool.map(compare_part, begins))
        else:
            for begin in begins:
                compare_part(begin)
        return jaccard, estimate

    def _signatures(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shingles (S,), offsets (rows + 1,), signatures (rows, permutations) uint32)."""
        shingles = _loops()

        hashes, offsets = shingles.shingles(texts, self._alphabet, self._ngram)
        signatures = np.empty((len(texts), len(self._multipliers)), np.uint32)
        shingles.sign(hashes, offsets, self._multipliers, self._addends, signatures)
        return hashes, offsets, signatures


def _equal_pairs(whole: np.ndarray) -> np.ndarray:
    """(first << 32 | row) for each row whose signature an earlier row has."""
    order = np.argsort(whole, kind="stable")
    ordered = whole[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(whole) else order
    firsts = np.repeat(order[begins], np.diff(np.append(begins, len(order))))
    again = firsts != order
    return (firsts[again].astype(np.uint64) << np.uint64(32)) | order[again].astype(np.uint64)


def _bucket_pairs(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    shingles = _loops()

    rows = np.flatnonzero(wanted).astype(np.uint64)
    packed = np.sort((keys[wanted].astype(np.uint64) << np.uint64(32)) | rows)
    alone = np.ones(len(packed), np.bool_)
    same = (packed[1:] >> np.uint64(32)) == (packed[:-1] >> np.uint64(32))
    alone[1:] &= ~same
    alone[:-1] &= ~same
    packed = packed[~alone]
    pairs = np.empty(len(packed) * (_WINDOW + 1), np.uint64)
    return pairs[: shingles.bucket_pairs(packed, _WINDOW, pairs)].copy()


def _clusters(num_rows: int, left: IntArray, right: IntArray, accepted: np.ndarray) -> IntArray:
    shingles = _loops()

    parents = np.arange(num_rows, dtype=np.int64)
    shingles.unite(parents, left, right, accepted)
    return np.where(parents == np.arange(num_rows), -1, parents)
