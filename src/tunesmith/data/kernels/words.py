"""Texts to code points, code points to words and their 64-bit hashes, words to numbers. One pass, no Python per word.

Words are those of tunesmith.text.rouge, by its table of character classes; a test compares them for every script.
Legend: C code points, W words, R rows of a chunk; offsets have one entry more than what they delimit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from tunesmith.text.rouge import UNSPACED, UNSPACED_MARK, WORD, Alphabet

jit = numba.njit(cache=True, nogil=True, error_model="numpy")

_EMPTY = np.int32(-1)


def pack(texts: Sequence[str], alphabet: Alphabet) -> tuple[np.ndarray, np.ndarray]:
    """Code points (C,) of all texts, uint8 where all are ASCII, else uint32; offsets (R + 1,).

    ASCII letters stay as they are, the loops fold them; other texts come out prepared (NFKC, lower case).
    """
    joined = "".join(texts)
    if joined.isascii():
        codes = np.frombuffer(joined.encode("ascii"), np.uint8)
    else:
        texts = [text if text.isascii() else alphabet.prepare(text) for text in texts]
        codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return codes, offsets


def split_words(
    codes: np.ndarray, offsets: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(hashes (W,), starts (W,), ends (W,) in code points, word offsets (R + 1,))."""
    hashes = np.empty(len(codes), np.uint64)
    starts = np.empty(len(codes), np.int64)
    ends = np.empty(len(codes), np.int64)
    word_offsets = np.zeros(len(offsets), np.int64)
    number = _split(codes, offsets, classes, hashes, starts, ends, word_offsets)
    return hashes[:number], starts[:number], ends[:number], word_offsets


@jit
def mix(value):
    """Finaliser of MurmurHash3: every bit of the input reaches every bit of the output."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@jit
def fold(code):
    """Lower case of an ASCII letter; other code points as they are."""
    return code + 32 if 65 <= code <= 90 else code


@jit
def _split(codes, offsets, classes, hashes, starts, ends, word_offsets):
    number = 0
    for row in range(len(offsets) - 1):
        state = 0  # 0 outside, WORD or UNSPACED inside a word of that kind
        value = np.uint64(0)
        for i in range(offsets[row], offsets[row + 1]):
            code = fold(np.uint32(codes[i]))
            kind = classes[code]
            if kind == WORD:
                goes_on = state == WORD
                begins = True
            elif kind == 0:
                goes_on = False
                begins = False
            elif kind == UNSPACED:
                goes_on = False
                begins = True
            else:  # a combining mark belongs to the word before it
                goes_on = state != 0
                begins = kind == UNSPACED_MARK
            if not goes_on:
                if state != 0:
                    hashes[number] = mix(value)
                    ends[number] = i
                    number += 1
                    state = 0
                if begins:
                    state = WORD if kind == WORD else UNSPACED
                    starts[number] = i
                    value = np.uint64(0)
            if state != 0:
                value = value * np.uint64(0x9E3779B97F4A7C15) + np.uint64(code) + np.uint64(1)
        if state != 0:
            hashes[number] = mix(value)
            ends[number] = offsets[row + 1]
            number += 1
        word_offsets[row + 1] = number
    return number


class Vocabulary:
    """Words numbered by first appearance, exactly: words of equal hash are compared letter by letter."""

    def __init__(self) -> None:
        self.size = 0
        self.counts = np.zeros(1024, np.int64)  # how often each word was seen
        self._table = np.full(4096, _EMPTY, np.int32)  # open addressing, at most half full
        self._hashes = np.zeros(1024, np.uint64)
        self._starts = np.zeros(1025, np.int64)  # of each word in _letters
        self._letters = np.zeros(1 << 14, np.uint32)

    def number(self, texts: Sequence[str], alphabet: Alphabet) -> tuple[np.ndarray, np.ndarray]:
        """(word numbers (W,) int32, word offsets (R + 1,)) of the texts; new words get new numbers."""
        codes, offsets = pack(texts, alphabet)
        hashes, starts, ends, word_offsets = split_words(codes, offsets, alphabet.classes())
        self._make_room(len(hashes), int(np.sum(ends - starts)))
        numbers = np.empty(len(hashes), np.int32)
        self.size = _intern(
            codes, hashes, starts, ends, self._table, self._hashes, self._starts, self._letters, self.size, self.counts, numbers
        )  # fmt: skip
        return numbers, word_offsets

    def _make_room(self, num_words: int, num_letters: int) -> None:
        """For the worst case: every word of the chunk is new."""
        self.counts = grown(self.counts, self.size + num_words)
        self._hashes = grown(self._hashes, self.size + num_words)
        self._starts = grown(self._starts, self.size + num_words + 1)
        self._letters = grown(self._letters, int(self._starts[self.size]) + num_letters)
        slots = len(self._table)
        while slots < 2 * (self.size + num_words):
            slots *= 2
        if slots > len(self._table):
            self._table = np.full(slots, _EMPTY, np.int32)
            _refill(self._table, self._hashes, self.size)


def grown(array: np.ndarray, size: int) -> np.ndarray:
    """The array itself where it has `size` entries along its first axis, else a copy at least twice as long."""
    if len(array) >= size:
        return array
    bigger = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), array.dtype)
    bigger[: len(array)] = array
    return bigger


@jit
def _refill(table, hashes, size):
    mask = np.uint64(len(table) - 1)
    for number in range(size):
        slot = hashes[number] & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = number


@jit
def _intern(codes, hashes, starts, ends, table, known_hashes, known_starts, letters, size, counts, numbers):
    mask = np.uint64(len(table) - 1)
    for w in range(len(hashes)):
        value = hashes[w]
        start, length = starts[w], ends[w] - starts[w]
        slot = value & mask
        while True:
            number = table[slot]
            if number < 0:
                number = np.int32(size)
                table[slot] = number
                known_hashes[number] = value
                begin = known_starts[number]
                for k in range(length):
                    letters[begin + k] = fold(np.uint32(codes[start + k]))
                known_starts[number + 1] = begin + length
                size += 1
                break
            if known_hashes[number] == value:
                begin = known_starts[number]
                same = known_starts[number + 1] - begin == length
                k = 0
                while same and k < length:
                    same = letters[begin + k] == fold(np.uint32(codes[start + k]))
                    k += 1
                if same:
                    break
            slot = (slot + np.uint64(1)) & mask
        counts[number] += 1
        numbers[w] = number
    return size
