"""The compiled loops of word_table.py: bytes to words, words to numbers, numbers to token ids.

Legend: B bytes, S segments, W words, T tokens; offsets have one entry more than what they delimit.
"""

from __future__ import annotations

import numba
import numpy as np

LETTER, DIGIT, SIGN, SPACE, OTHER, WIDE = 1, 2, 3, 4, 5, 6
"""Kinds of bytes: ASCII letters, digits, other printable ones, the space, other ASCII, bytes of other characters."""

_read_bytes = numba.types.Array(numba.uint8, 1, "C", readonly=True)
_bytes, _i4, _i8, _u8 = numba.uint8[::1], numba.int32[::1], numba.int64[::1], numba.uint64[::1]


def _jit(*signature: object):
    """Compiled, or fetched from the cache, when this module is imported."""
    return numba.njit(signature, cache=True, nogil=True, error_model="numpy")  # pyright: ignore[reportCallIssue, reportArgumentType]


def kinds() -> np.ndarray:
    """(256,) the kind of each byte."""
    found = np.full(256, OTHER, np.uint8)
    found[0x80:] = WIDE
    found[0x21:0x7F] = SIGN
    found[ord("0") : ord("9") + 1] = DIGIT
    found[ord("A") : ord("Z") + 1] = LETTER
    found[ord("a") : ord("z") + 1] = LETTER
    found[ord(" ")] = SPACE
    return found


@numba.njit(inline="always", error_model="numpy")  # a call for every word would take a seventh of the time
def _number_of(data, begin, length, value, table, hashes, starts, letters, sizes):
    """The number of a word of the data, which is added where it is new. value: its bytes, hashed. The rest as in number_words."""
    value ^= value >> np.uint64(32)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(29)
    mask = np.uint64(len(table) - 1)
    slot = value & mask
    while table[slot] >= 0:
        number = table[slot]
        at = starts[number]
        if hashes[number] == value and starts[number + 1] - at == length:
            k = 0
            while k < length and letters[at + k] == data[begin + k]:
                k += 1
            if k == length:
                return number
        slot = (slot + np.uint64(1)) & mask
    number = np.int32(sizes[0])
    table[slot] = number
    hashes[number] = value
    at = starts[number]
    for k in range(length):
        letters[at + k] = data[begin + k]
    starts[number + 1] = at + length
    sizes[0] += 1
    return number


@_jit(_read_bytes, _i8, _i4, numba.int64, _bytes, numba.boolean, numba.boolean, _i4, _u8, _i8, _bytes, _i8, _i4, _i8)
def number_words(
    data,
    segments,
    segment_ids,
    first,
    kind,
    fine,
    single_digits,
    table,
    hashes,
    starts,
    letters,
    sizes,
    numbers,
    word_offsets,
):
    """Numbers the words of segments, from segment `first` on; new words get new numbers.

    Returns the segment before which it stopped because the next one might not find room, or S. segment_ids: (S,) -1 where a segment
    has words. table: open addressing, a word's number or -1. starts, letters: the words' bytes. sizes: [known words], changed.
    """
    count = word_offsets[first]
    for s in range(first, len(segments) - 1):
        i, stop = segments[s], segments[s + 1]
        if segment_ids[s] >= 0:
            word_offsets[s + 1] = count
            continue
        if sizes[0] + stop - i > len(hashes) or starts[sizes[0]] + stop - i > len(letters):
            return s
        while i < stop:
            begin = i
            value = np.uint64(data[i]) + np.uint64(1)
            here = kind[data[i]]
            i += 1
            while i < stop:
                there = kind[data[i]]
                cut = False
                if there == SPACE:
                    if here <= SIGN:
                        cut = (fine and here <= DIGIT) or (i + 1 < stop and kind[data[i + 1]] <= SIGN)
                elif fine and there != WIDE:
                    if here == there:
                        cut = here == DIGIT and single_digits
                    else:
                        cut = here <= DIGIT or (here == SIGN and there == DIGIT)
                if cut:
                    break
                value = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(data[i]) + np.uint64(1)
                here = there
                i += 1
            numbers[count] = _number_of(data, begin, i - begin, value, table, hashes, starts, letters, sizes)
            count += 1
        word_offsets[s + 1] = count
    return len(segments) - 1


@_jit(_i4, _u8, numba.int64)
def refill(table, hashes, size):
    """Put known words into an empty table."""
    mask = np.uint64(len(table) - 1)
    for number in range(size):
        slot = hashes[number] & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = number


@_jit(_i4, _i8, _i4, _i8, _i4, _i4, _i8)
def write_ids(numbers, word_offsets, segment_ids, id_offsets, ids, out, token_offsets):
    """Token ids of segments: those of its words, or for a segment with an id of its own (>= 0) that one."""
    at = 0
    for s in range(len(word_offsets) - 1):
        if segment_ids[s] >= 0:
            out[at] = segment_ids[s]
            at += 1
        else:
            for w in range(word_offsets[s], word_offsets[s + 1]):
                number = numbers[w]
                for k in range(id_offsets[number], id_offsets[number + 1]):
                    out[at] = ids[k]
                    at += 1
        token_offsets[s + 1] = at
    return at
