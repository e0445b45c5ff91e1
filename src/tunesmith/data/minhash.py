"""Texts that are nearly equal: MinHash (Broder 1997) with banding, each candidate verified by its true Jaccard.

    find_near(texts, threshold=..., ngram=..., num_bands=..., rows_per_band=..., num_threads=..., rng_seed=...) -> Matches

Shingles are n words in a row, and n characters in a row where a text has fewer words; characters of unspaced scripts
are words. Two texts become candidates where all permutations of one band agree, pairs of Jaccard >= threshold are
united, and the first row of each cluster stays. In a chain a ~ b ~ c the score of c is its Jaccard with a, which may be
under the threshold.

The texts are read once and not kept. On disk lie 8 bytes per shingle (about one per word; candidates are verified by
these) and 4 per row and band; memory holds about 100 bytes per row, signatures of one chunk of rows only.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

import numpy as np

from tunesmith.data.disk_array import DiskArray
from tunesmith.data.kernels import compiled, map_chunks
from tunesmith.data.matches import FloatArray, IntArray, Matches, from_dup_of
from tunesmith.text.rouge import alphabet_of, unicode_tokens

# Fewer texts are done in Python before the compiled loops are loaded (half a second), or once compiled (four).
COMPILED_FROM = 2000
# In a bucket each row is compared with its first row and this many before it: all pairs of a bucket of 100,000 rows
# that share a template would never end, and the other bands bring together what one band keeps apart.
_WINDOW = 8
_PAIRS_AT_ONCE = 1 << 14
_REFUSED_AT_MOST = (
    1 << 23
)  # pairs remembered as not alike; one that is forgotten is compared again, with the same answer
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def find_near(
    texts: Iterable[str],
    *,
    threshold: float,
    ngram: int,
    num_bands: int,
    rows_per_band: int,
    num_threads: int,
    rng_seed: int,
    folder: Path | None = None,
) -> Matches:
    """Each text of Jaccard >= `threshold` with another of its cluster names the cluster's first text.

    num_bands * rows_per_band permutations; a pair of Jaccard j is found with probability
    1 - (1 - j^rows_per_band)^num_bands. folder: for the temporary files, None = the system's. DataError where it is full.
    """
    unread = iter(texts)
    begin = list(islice(unread, COMPILED_FROM))
    loops = _loops(len(begin))
    with DiskArray(np.uint64, folder) as shingles, DiskArray(np.uint32, folder) as keys:
        search = _Search(loops, ngram, num_bands, rows_per_band, num_threads, rng_seed, shingles, keys)
        whole = search.sign(chain(begin, unread))
        copies = _equal_pairs(whole)
        first = np.ones(len(whole), np.bool_)
        first[_unpack(copies)[1]] = False  # a copy finds nothing that its original does not
        del whole
        clusters = _Clusters(loops, len(first), threshold)
        clusters.join(copies, search)
        for band in range(num_bands):
            clusters.join(_bucket_pairs(loops, search.band(band), first), search)
        dup_of = clusters.dup_of()
        score, estimate = np.zeros(len(dup_of)), np.zeros(len(dup_of))
        rows = np.flatnonzero(dup_of >= 0).astype(np.int64)
        score[rows], estimate[rows] = search.compare(dup_of[rows], rows, estimates=True)
    return from_dup_of(dup_of, score, estimate)


def _loops(num_texts: int) -> ModuleType:
    if compiled() and num_texts >= COMPILED_FROM:
        from tunesmith.data.kernels import shingles

        return shingles
    from tunesmith.data.kernels import plain

    return plain


class _Search:
    """What is computed from the texts: read once, chunk by chunk, then their shingles and band keys on disk."""

    def __init__(
        self,
        loops: ModuleType,
        ngram: int,
        num_bands: int,
        rows_per_band: int,
        num_threads: int,
        rng_seed: int,
        shingles: DiskArray,
        keys: DiskArray,
    ) -> None:
        alphabet = alphabet_of(unicode_tokens)
        assert alphabet is not None
        rng = np.random.Generator(np.random.PCG64(rng_seed))
        count = num_bands * rows_per_band
        self._loops, self._alphabet, self._ngram = loops, alphabet, ngram
        self._num_bands, self._num_threads = num_bands, num_threads
        self._multipliers = rng.integers(0, 1 << 32, count, np.uint32) | np.uint32(1)  # odd: a permutation of 2^32
        self._addends = rng.integers(0, 1 << 32, count, np.uint32)
        self._shingles = shingles
        self._keys = keys  # (bands, rows) of each chunk
        self._chunk_sizes: list[int] = []  # rows
        self._offsets = np.zeros(1, np.int64)  # (rows + 1,), into the shingles

    def sign(self, texts: Iterable[str]) -> np.ndarray:
        """Reads all texts. (rows,) uint64, equal where all permutations are."""
        loops = self._loops

        def sign_chunk(_: int, chunk: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            hashes, offsets = loops.shingles(chunk, self._alphabet, self._ngram)
            keys, whole = np.empty((self._num_bands, len(chunk)), np.uint32), np.empty(len(chunk), np.uint64)
            loops.band_keys(self._signatures(hashes, offsets), self._num_bands, keys, whole)
            return hashes, np.diff(offsets), keys, whole

        sizes, wholes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for hashes, num_shingles, keys, whole in map_chunks(texts, sign_chunk, self._num_threads):
            self._shingles.append(hashes)
            self._keys.append(keys)
            self._chunk_sizes.append(len(whole))
            sizes.append(num_shingles)
            wholes.append(whole)
        self._offsets = np.concatenate([[0], *sizes]).cumsum()
        return np.concatenate(wholes)

    def band(self, number: int) -> np.ndarray:
        """The keys (rows,) uint32 of one band."""
        keys = self._keys.read()
        parts = [np.empty(0, np.uint32)]
        begin = 0
        for size in self._chunk_sizes:
            parts.append(keys[begin + number * size : begin + (number + 1) * size])
            begin += self._num_bands * size
        return np.concatenate(parts)

    def compare(self, left: IntArray, right: IntArray, *, estimates: bool) -> tuple[FloatArray, FloatArray]:
        """(true Jaccard, estimated Jaccard where asked for) of each pair of rows."""
        loops = self._loops
        jaccard, estimate = np.zeros(len(left)), np.zeros(len(left))
        order = np.argsort(left, kind="stable")

        def compare_part(begin: int) -> None:
            part = order[begin : begin + _PAIRS_AT_ONCE]
            rows, places = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
            a, b = places[: len(part)], places[len(part) :]
            found = np.empty(len(part))
            hashes, offsets = self._shingles_of(rows)
            if estimates:
                loops.estimate(self._signatures(hashes, offsets), a, b, found)
                estimate[part] = found
            sizes = np.empty(len(rows), np.int64)
            loops.sort_sets(hashes, offsets, sizes)
            loops.compare(hashes, offsets, sizes, a, b, found)
            jaccard[part] = found

        begins = range(0, len(left), _PAIRS_AT_ONCE)
        if self._num_threads > 1 and len(begins) > 1:
            with ThreadPoolExecutor(self._num_threads) as pool:
                list(pool.map(compare_part, begins))
        else:
            for begin in begins:
                compare_part(begin)
        return jaccard, estimate

    def _shingles_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shingles (S,), offsets (rows + 1,)) of some rows, which may be written to."""
        begins = self._offsets[rows]
        sizes = self._offsets[rows + 1] - begins
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], sizes)
        return self._shingles.read()[places], offsets

    def _signatures(self, hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(rows, permutations) uint32."""
        signatures = np.empty((len(offsets) - 1, len(self._multipliers)), np.uint32)
        self._loops.sign(hashes, offsets, self._multipliers, self._addends, signatures)
        return signatures


class _Clusters:
    """Rows united by the pairs that are alike. A pair inside one cluster needs no comparing."""

    def __init__(self, loops: ModuleType, num_rows: int, threshold: float) -> None:
        self._loops = loops
        self._parents = np.arange(num_rows, dtype=np.int64)  # of each row the first of its cluster
        self._threshold = threshold
        self._refused = np.empty(0, np.uint64)  # pairs that are not alike, sorted

    def join(self, pairs: np.ndarray, search: _Search) -> None:
        """Unite what is alike among the pairs (earlier << 32 | later)."""
        left, right = _unpack(pairs)
        pairs = np.unique(pairs[self._parents[left] != self._parents[right]])
        known = np.searchsorted(self._refused, pairs)
        known[known == len(self._refused)] = 0
        if len(self._refused):
            pairs = pairs[self._refused[known] != pairs]
        left, right = _unpack(pairs)
        alike = search.compare(left, right, estimates=False)[0] >= self._threshold
        self._loops.unite(self._parents, left, right, alike)
        refused = np.concatenate([self._refused, pairs[~alike]])
        refused.sort()
        self._refused = refused[:_REFUSED_AT_MOST].copy()

    def dup_of(self) -> IntArray:
        """The first row of each row's cluster, -1 for that row itself."""
        return np.where(self._parents == np.arange(len(self._parents)), -1, self._parents)


def _unpack(pairs: np.ndarray) -> tuple[IntArray, IntArray]:
    return (pairs >> _HALF).astype(np.int64), (pairs & _LOW).astype(np.int64)


def _equal_pairs(whole: np.ndarray) -> np.ndarray:
    """(first << 32 | row) for each row whose signature an earlier row has."""
    order = np.argsort(whole, kind="stable")
    ordered = whole[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(whole) else order
    firsts = np.repeat(order[begins], np.diff(np.append(begins, len(order))))
    again = firsts != order
    return (firsts[again].astype(np.uint64) << np.uint64(32)) | order[again].astype(np.uint64)


def _bucket_pairs(loops: ModuleType, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(wanted).astype(np.uint64)
    packed = np.sort((keys[wanted].astype(np.uint64) << np.uint64(32)) | rows)
    alone = np.ones(len(packed), np.bool_)
    same = (packed[1:] >> np.uint64(32)) == (packed[:-1] >> np.uint64(32))
    alone[1:] &= ~same
    alone[:-1] &= ~same
    packed = packed[~alone]
    pairs = np.empty(len(packed) * (_WINDOW + 1), np.uint64)
    return pairs[: loops.bucket_pairs(packed, _WINDOW, pairs)].copy()
