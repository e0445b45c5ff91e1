"""The loops of words.py, shingles.py and pooling.py in Python and numpy, for installations without numba and for the tests that
compare the two. Same names, same arguments, same results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from tunesmith.text.rouge import Alphabet

_BITS = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_SHORT = 0xA24BAED4963EE407


def mix(value: int) -> int:
    """Finaliser of MurmurHash3."""
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _BITS
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _BITS
    return value ^ (value >> 33)


def word_hash(word: str) -> int:
    """The 64-bit hash of a word."""
    value = 0
    for character in word:
        value = (value * _STEP + ord(character) + 1) & _BITS
    return mix(value)


def shingles(texts: Sequence[str], alphabet: Alphabet, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes (S,) uint64, offsets (R + 1,)): the shingles of each text in order, repeats included."""
    rows = [_shingles_of(text, alphabet, ngram) for text in texts]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.array([value for row in rows for value in row], np.uint64), offsets


def _shingles_of(text: str, alphabet: Alphabet, ngram: int) -> list[int]:
    words = alphabet.tokenize(text)
    if len(words) >= ngram:
        return _grams([word_hash(word) for word in words], ngram, 0)
    if words:
        return _grams([ord(character) for character in " ".join(words)], ngram, _SHORT)
    prepared = text if text.isascii() else alphabet.prepare(text)
    return _grams([ord(character) for character in prepared if ord(character) > 32], ngram, _SHORT)


def _grams(values: list[int], ngram: int, seed: int) -> list[int]:
    out = []
    for first in range(max(1, len(values) - ngram + 1)):
        value = seed
        for each in values[first : first + ngram]:
            value = (value * _STEP + each) & _BITS
        out.append(mix(value))
    return out


def sign(
    hashes: np.ndarray, offsets: np.ndarray, multipliers: np.ndarray, addends: np.ndarray, signatures: np.ndarray
) -> None:
    """signatures (R, P) uint32: the least value of each permutation over the row's shingles."""
    for row in range(len(offsets) - 1):
        x = (hashes[offsets[row] : offsets[row + 1]] >> np.uint64(32)).astype(np.uint32)
        signatures[row] = (multipliers[None, :] * x[:, None] + addends[None, :]).min(axis=0)


def band_keys(signatures: np.ndarray, num_bands: int, keys: np.ndarray, whole: np.ndarray) -> None:
    """keys (B, R) uint32: a hash of each band of each row; whole (R,) uint64: of all permutations."""
    width = signatures.shape[1] // num_bands
    for row, signature in enumerate(signatures.tolist()):
        total = 0
        for band in range(num_bands):
            value = band + 1
            for each in signature[band * width : (band + 1) * width]:
                value = (value ^ each) * _STEP & _BITS
                value ^= value >> 32
            value = mix(value)
            keys[band, row] = value >> 32
            total = mix(total ^ value)
        whole[row] = total


def bucket_pairs(packed: np.ndarray, window: int, pairs: np.ndarray) -> int:
    """Pairs (earlier << 32 | later) of rows of equal key; returns how many."""
    number, begin, entries = 0, 0, packed.tolist()
    low = (1 << 32) - 1
    for i in range(1, len(entries)):
        if entries[i] >> 32 != entries[begin] >> 32:
            begin = i
            continue
        others = list(range(max(begin, i - window), i)) + ([begin] if i - window > begin else [])
        for k in others:
            pairs[number] = (entries[k] & low) << 32 | (entries[i] & low)
            number += 1
    return number


def sort_sets(hashes: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
    """Sort the shingles of each row and drop repeats, in place."""
    for row in range(len(offsets) - 1):
        different = np.unique(hashes[offsets[row] : offsets[row + 1]])
        hashes[offsets[row] : offsets[row] + len(different)] = different
        sizes[row] = len(different)


def compare(
    hashes: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    jaccard: np.ndarray,
) -> None:
    """Of each pair of rows: the Jaccard of the two sets."""
    for pair, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        one = hashes[offsets[a] : offsets[a] + sizes[a]]
        other = hashes[offsets[b] : offsets[b] + sizes[b]]
        shared = len(np.intersect1d(one, other, assume_unique=True))
        jaccard[pair] = shared / (len(one) + len(other) - shared)


def estimate(signatures: np.ndarray, left: np.ndarray, right: np.ndarray, share: np.ndarray) -> None:
    """Of each pair of rows: the share of equal permutations."""
    for pair, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        share[pair] = np.count_nonzero(signatures[a] == signatures[b]) / signatures.shape[1]


def unite(parents: np.ndarray, left: np.ndarray, right: np.ndarray, accepted: np.ndarray) -> None:
    """Union-find over the accepted pairs; the lowest row of a cluster is its root."""
    for a, b in zip(left[accepted].tolist(), right[accepted].tolist(), strict=True):
        while parents[a] != a:
            a = parents[a]
        while parents[b] != b:
            b = parents[b]
        parents[max(a, b)] = min(a, b)
    for row in range(len(parents)):
        parents[row] = parents[parents[row]]


def mean_rows(table: np.ndarray, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean of the next sizes[r] rows of the table that `numbers` name."""
    out = np.zeros((len(sizes), table.shape[1]), np.float32)
    unread = iter(numbers.tolist())
    for total, size in zip(out, sizes.tolist(), strict=True):
        for number in islice(unread, size):
            total += table[number]
        total /= np.float32(max(1, size))
    return out
