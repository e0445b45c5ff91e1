"""Token ids of many texts at once: the words of word_memory.py in arrays, looked up by a compiled loop.

Beside the cuts that word_memory.py makes there are more, where every pre-tokenizer that it knows cuts too and none looks back: behind
an ASCII letter or digit that another ASCII character than its like follows, between a printable sign and a digit, and between two
digits for tokenizers that take each by itself. An added token may hold such a place, so they are left out where the text has one.
Words are compared byte by byte; the tokenizer itself is asked for the ids of each new one. Knows nothing of templates.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_NO_WORD = np.int32(-1)
_MOST_WORDS = 1_000_000  # then the table begins anew; a million take about 40 MB
_FIRST_WORDS = 1 << 16  # that there is room for, a power of two
_WORDS_AT_ONCE = 100  # that the tokenizer reads as one text


@cache
def has_compiler() -> bool:
    """Whether the loops can be compiled: numba is there."""
    return importlib.util.find_spec("numba") is not None


class WordTable:
    """Encodes segments of bytes with a tokenizer, which must not change afterwards.

    separator: a token of the tokenizer that no text holds, and its id. added: matches what it takes for tokens of their own in a text;
    None where that is nothing. single_digits: whether it cuts between any two digits.
    """

    def __init__(
        self, tokenizer: Tokenizer, separator: tuple[str, int], added: re.Pattern[bytes] | None, *, single_digits: bool
    ) -> None:
        from tunesmith.chat import word_loops

        self._loops: ModuleType = word_loops
        self._tokenizer = tokenizer
        self._separator, self._separator_id = separator
        self._added = added
        self._single_digits = single_digits
        self._kinds = word_loops.kinds()
        self._lock = Lock()
        self._forget()

    def encode(
        self, data: bytes, segments: NDArray[np.int64], segment_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(T,) ids of all segments, and (S + 1,) where those of each begin.

        data: all segments one after another. segments: (S + 1,) where each begins; none inside a character. segment_ids: (S,) the id of a segment that is one token whatever its text, else -1.
        """
        with self._lock:
            if self._sizes[0] > _MOST_WORDS:
                self._forget()
            numbers, word_offsets = self._number(data, segments, segment_ids)
            self._ask(int(self._sizes[0]))
            num_ids = np.diff(self._id_offsets)[numbers].sum() + (segment_ids >= 0).sum()
            out, offsets = np.empty(int(num_ids), np.int32), np.zeros(len(segments), np.int64)
            self._loops.write_ids(numbers, word_offsets, segment_ids, self._id_offsets, self._ids, out, offsets)
        return out, offsets

    def _forget(self) -> None:
        self._table = np.full(2 * _FIRST_WORDS, _NO_WORD, np.int32)
        self._hashes = np.zeros(_FIRST_WORDS, np.uint64)
        self._starts = np.zeros(_FIRST_WORDS + 1, np.int64)
        self._letters = np.zeros(16 * _FIRST_WORDS, np.uint8)
        self._sizes = np.zeros(1, np.int64)
        self._id_offsets = np.zeros(1, np.int64)
        self._ids = np.zeros(0, np.int32)

    def _number(
        self, data: bytes, segments: NDArray[np.int64], segment_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Numbers of all words, and (S + 1,) where those of each segment begin."""
        buffer = np.frombuffer(data, np.uint8)
        fine = self._added is None or self._added.search(data) is None
        numbers, word_offsets = np.empty(len(buffer), np.int32), np.zeros(len(segments), np.int64)
        done = 0
        while True:
            done = self._loops.number_words(
                buffer, segments, segment_ids, done, self._kinds, fine, self._single_digits, self._table, self._hashes, self._starts, self._letters,
                self._sizes, numbers, word_offsets,
            )  # fmt: skip
            if done == len(segment_ids):
                return numbers[: word_offsets[-1]], word_offsets
            self._make_room(int(segments[done + 1] - segments[done]))

    def _make_room(self, num_bytes: int) -> None:
        """For a segment of so many bytes, were each a new word."""
        size = int(self._sizes[0])
        self._letters = _grown(self._letters, int(self._starts[size]) + num_bytes)
        if size + num_bytes > len(self._hashes):
            self._hashes = _grown(self._hashes, size + num_bytes)
            self._starts = _grown(self._starts, len(self._hashes) + 1)
            slots = len(self._table)
            while slots < 2 * len(self._hashes):
                slots *= 2
            self._table = np.full(slots, _NO_WORD, np.int32)
            self._loops.refill(self._table, self._hashes, size)

    def _ask(self, size: int) -> None:
        """The tokenizer for the ids of words that have none yet. A separator between words keeps each by itself."""
        known = len(self._id_offsets) - 1
        begin = int(self._starts[known])
        letters, starts = self._letters[begin : self._starts[size]].tobytes(), (self._starts - begin).tolist()
        words = [letters[starts[word] : starts[word + 1]].decode() for word in range(known, size)]
        texts = [self._separator.join(words[at : at + _WORDS_AT_ONCE]) for at in range(0, len(words), _WORDS_AT_ONCE)]
        found, lengths = [self._ids], [np.zeros(0, np.int64)]
        for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids = np.array(each.ids, np.int32)
            ends = np.append(np.flatnonzero(ids == self._separator_id), len(ids))
            lengths.append(np.diff(ends, prepend=-1) - 1)
            found.append(ids[ids != self._separator_id])
        self._ids = np.concatenate(found)
        offsets = self._id_offsets[-1] + np.cumsum(np.concatenate(lengths))
        self._id_offsets = np.concatenate([self._id_offsets, offsets])
        assert len(self._id_offsets) == size + 1, "a text holds the separator"


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array itself where it has so many entries, else a copy at least twice as long."""
    if len(array) >= size:
        return array
    bigger = np.zeros(max(size, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger
