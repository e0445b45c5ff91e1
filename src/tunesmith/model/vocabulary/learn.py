"""New pieces learnt from text: the merges of a byte-level BPE, continued where its own training stopped.

Sennrich et al. 2016, arXiv 1508.07909: join the most frequent pair of neighbours, again and again. We start not from bytes
but from the old tokens of each word, so every new piece is old tokens joined, and leave out pairs whose piece would

- end inside a character, unless it is a part of one character (half a character beside a whole one is what plain byte-level
  training spends many of its merges on),
- be longer than the recipe allows (Chinese has no spaces, so clauses that repeat would become pieces),
- be in the vocabulary already, by another way of joining.

Owns which pairs are joined, and in what order. Refuses to know files and models.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tunesmith.chat.pieces import from_byte_level
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.extension import Extension
from tunesmith.model.vocabulary.pairs import Key, Pairs, ids_of

_CONTINUES = range(0x80, 0xC0)  # bytes of UTF-8 that go on with a character
OnPiece = Callable[[int, int], None]
"""(pieces learnt, pieces wanted)"""


@dataclass(frozen=True)
class Learned:
    """What learning found."""

    extension: Extension
    counts: tuple[int, ...]  # how often each new piece was joined in the corpus
    tokens_before: int  # of the corpus
    tokens_after: int


def learn_pieces(
    base: BaseTokenizer,
    words: Counter[str],
    *,
    num_new_tokens: int,
    max_piece_characters: int,
    min_piece_count: int,
    on_piece: OnPiece | None = None,
) -> Learned:
    """Up to num_new_tokens pieces from the words of a corpus (`base.count_words`); fewer where no pair stands
    min_piece_count times any more. Depends on the counts alone, not on the order of the words: ties go to the smaller ids."""
    tokens, lengths, counts = _cut_all(base, words)
    pairs = Pairs(tokens, lengths, counts, min_piece_count)
    tokens_before = pairs.num_tokens
    growing = _Growing(base, max_piece_characters)
    heap: list[tuple[int, Key]] = []

    def offer(key: Key) -> None:
        if growing.may_join(key):
            heapq.heappush(heap, (-pairs.counts[key], key))

    for key in list(pairs.counts):
        offer(key)
    found: list[int] = []
    while heap and len(found) < num_new_tokens:
        count, key = heapq.heappop(heap)
        now = pairs.counts.get(key, 0)
        if now != -count:  # other joins took some of its places since it was put here
            if now >= min_piece_count:
                heapq.heappush(heap, (-now, key))
            continue
        if not growing.may_join(key):
            continue  # its piece came to be by another way
        new_id = growing.join(key)
        found.append(now)
        for new_key in list(pairs.join(key, new_id)):
            offer(new_key)
        if on_piece is not None:
            on_piece(len(found), num_new_tokens)
    return Learned(growing.extension(), tuple(found), tokens_before, pairs.num_tokens)


def _cut_all(base: BaseTokenizer, words: Counter[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of every different word end to end, tokens per word, occurrences per word. Words of one token are left out:
    nothing in them can be joined."""
    tokens: list[int] = []
    lengths: list[int] = []
    counts: list[int] = []
    for word in sorted(words):
        ids = base.cut(word)
        if len(ids) > 1:
            tokens += ids
            lengths.append(len(ids))
            counts.append(words[word])
    return np.array(tokens, np.int32), np.array(lengths, np.int64), np.array(counts, np.int64)


class _Growing:
    """The vocabulary while it grows: text and bytes of each token, and which joins are allowed."""

    def __init__(self, base: BaseTokenizer, max_piece_characters: int) -> None:
        self._max_characters = max_piece_characters
        self._text = {index: piece for piece, index in base.vocabulary.items()}
        self._taken = set(base.vocabulary)
        self._first_id = self._next_id = base.first_free_id
        self._old: dict[int, tuple[int, ...]] = {}
        self._merges: list[tuple[str, str]] = []

    def may_join(self, key: Key) -> bool:
        left, right = ids_of(key)
        text = self._text[left] + self._text[right]
        return text not in self._taken and is_whole(from_byte_level(text), self._max_characters)

    def join(self, key: Key) -> int:
        """Enter the piece of a pair; returns its id."""
        left, right = ids_of(key)
        text = self._text[left] + self._text[right]
        new_id = self._next_id
        self._next_id += 1
        self._text[new_id] = text
        self._taken.add(text)
        self._old[new_id] = (*self._old.get(left, (left,)), *self._old.get(right, (right,)))
        self._merges.append((self._text[left], self._text[right]))
        return new_id

    def extension(self) -> Extension:
        new = range(self._first_id, self._next_id)
        pieces = tuple(self._text[index] for index in new)
        return Extension(self._first_id, pieces, tuple(self._merges), tuple(self._old[index] for index in new))


def is_whole(piece: bytes, max_characters: int) -> bool:
    """Whether a piece is whole characters, at most so many, or a part of one character."""
    leads = [place for place, byte in enumerate(piece) if byte not in _CONTINUES]
    if not leads:
        return len(piece) <= 3  # the inner bytes of one character
    try:
        piece.decode()
    except UnicodeDecodeError:
        return leads == [0] and len(piece) <= 3 and piece[0] >= 0xC2  # the first bytes of one character
    return len(leads) <= max_characters
