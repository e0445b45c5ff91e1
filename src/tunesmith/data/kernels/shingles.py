"""Shingles of texts, MinHash signatures, band keys, Jaccard of shingle sets. Knows no rows beyond their numbers.

A shingle is n words in a row. A text of fewer than n words is cut into n characters in a row instead (of its words, or
of whatever it has besides whitespace where it has no word), and one of fewer than n characters is one shingle whole,
so no text is without a shingle and none is passed over. Legend: S shingles, R rows, P permutations, B bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.kernels.words import fold, jit, mix, pack, split_words
from tunesmith.text.rouge import Alphabet

STEP = np.uint64(0x9E3779B97F4A7C15)
SHORT = np.uint64(0xA24BAED4963EE407)  # tells shingles of characters from those of words


def shingles(texts: Sequence[str], alphabet: Alphabet, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes (S,) uint64, offsets (R + 1,)): the shingles of each text in order, repeats included."""
    codes, offsets = pack(texts, alphabet)
    hashes, starts, ends, word_offsets = split_words(codes, offsets, alphabet.classes())
    room = np.empty(len(codes) + len(hashes) + len(texts), np.uint64)
    out_offsets = np.zeros(len(texts) + 1, np.int64)
    number = _shingle(codes, offsets, hashes, starts, ends, word_offsets, ngram, room, out_offsets)
    return room[:number], out_offsets


@jit
def _grams(values, number, ngram, seed, out, used):
    """Hashes of ngram values in a row, or of all where they are fewer."""
    last = max(1, number - ngram + 1)
    for i in range(last):
        value = seed
        for k in range(i, min(i + ngram, number)):
            value = value * STEP + np.uint64(values[k])
        out[used + i] = mix(value)
    return used + last


@jit
def _shingle(codes, offsets, hashes, starts, ends, word_offsets, ngram, out, out_offsets):
    used = 0
    for row in range(len(offsets) - 1):
        first, last = word_offsets[row], word_offsets[row + 1]
        if last - first >= ngram:
            used = _grams(hashes[first:last], last - first, ngram, np.uint64(0), out, used)
        else:
            characters = np.empty(offsets[row + 1] - offsets[row] + last - first, np.uint32)
            number = 0
            if last > first:
                for word in range(first, last):
                    if word > first:
                        characters[number] = 32
                        number += 1
                    for i in range(starts[word], ends[word]):
                        characters[number] = fold(np.uint32(codes[i]))
                        number += 1
            else:
                for i in range(offsets[row], offsets[row + 1]):
                    if codes[i] > 32:
                        characters[number] = codes[i]
                        number += 1
            used = _grams(characters, number, ngram, SHORT, out, used)
        out_offsets[row + 1] = used
    return used


@jit
def sign(hashes, offsets, multipliers, addends, signatures):
    """signatures (R, P) uint32: the least value of each permutation a x + b mod 2^32 over the row's shingles.

    The mixer above makes x as good as random, which the linear permutations alone would not.
    """
    for row in range(len(offsets) - 1):
        least = signatures[row]
        least[:] = np.uint32(0xFFFFFFFF)
        for s in range(offsets[row], offsets[row + 1]):
            x = np.uint32(hashes[s] >> np.uint64(32))
            for p in range(len(least)):
                value = np.uint32(multipliers[p] * x + addends[p])
                least[p] = min(least[p], value)


@jit
def band_keys(signatures, num_bands, keys, whole):
    """keys (B, R) uint32: a hash of each band of each row; whole (R,) uint64: of all permutations."""
    width = signatures.shape[1] // num_bands
    for row in range(len(signatures)):
        total = np.uint64(0)
        for band in range(num_bands):
            value = np.uint64(band + 1)
            for p in range(band * width, (band + 1) * width):
                value = (value ^ np.uint64(signatures[row, p])) * STEP
                value ^= value >> np.uint64(32)
            value = mix(value)
            keys[band, row] = np.uint32(value >> np.uint64(32))
            total = mix(total ^ value)
        whole[row] = total


@jit
def bucket_pairs(packed, window, pairs):
    """Pairs (earlier << 32 | later) of rows of equal key in `packed`, sorted (key << 32 | row): each row with the first
    of its bucket and with the `window` rows before it. Returns how many; pairs has room for (window + 1) per row."""
    number = 0
    begin = 0
    for i in range(1, len(packed)):
        if packed[i] >> np.uint64(32) != packed[begin] >> np.uint64(32):
            begin = i
            continue
        row = packed[i] & np.uint64(0xFFFFFFFF)
        for k in range(max(begin, i - window), i):
            pairs[number] = ((packed[k] & np.uint64(0xFFFFFFFF)) << np.uint64(32)) | row
            number += 1
        if i - window > begin:
            pairs[number] = ((packed[begin] & np.uint64(0xFFFFFFFF)) << np.uint64(32)) | row
            number += 1
    return number


@jit
def sort_sets(hashes, offsets, sizes):
    """Sort the shingles of each row and drop repeats, in place: sizes (R,) of what is left at each row's begin."""
    for row in range(len(offsets) - 1):
        part = hashes[offsets[row] : offsets[row + 1]]
        part.sort()
        number = 0
        for i in range(len(part)):
            if i == 0 or part[i] != part[i - 1]:
                part[number] = part[i]
                number += 1
        sizes[row] = number


@jit
def compare(hashes, offsets, sizes, left, right, jaccard):
    """Of each pair of rows (N,): the Jaccard of the two sorted sets."""
    for pair in range(len(left)):
        a, b = left[pair], right[pair]
        i, j, shared = 0, 0, 0
        while i < sizes[a] and j < sizes[b]:
            x, y = hashes[offsets[a] + i], hashes[offsets[b] + j]
            shared += x == y
            i += x <= y
            j += y <= x
        jaccard[pair] = shared / (sizes[a] + sizes[b] - shared)


@jit
def estimate(signatures, left, right, share):
    """Of each pair of rows (N,): the share of equal permutations."""
    num_permutations = signatures.shape[1]
    for pair in range(len(left)):
        equal = 0
        for p in range(num_permutations):
            equal += signatures[left[pair], p] == signatures[right[pair], p]
        share[pair] = equal / num_permutations


@jit
def unite(parents, left, right, accepted):
    """Union-find over the accepted pairs; the lowest row of a cluster is its root. Afterwards parents[r] is the root."""
    for pair in range(len(left)):
        if not accepted[pair]:
            continue
        a, b = left[pair], right[pair]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        if a < b:
            parents[b] = a
        else:
            parents[a] = b
    for row in range(len(parents)):
        parents[row] = parents[parents[row]]
