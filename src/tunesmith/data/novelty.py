"""How near a text is to the nearest one of a growing pool, by ROUGE-L F1, and the greedy loop that keeps what is novel.

    index = RougeNoveltyIndex()                     protocol NoveltyIndex: add, nearest, len
    index.nearest_above(text, 0.7)                  (F1, pool row) or None
    index.add_novel(texts, 0.7)   -> Matches        the loop over many texts, in pool rows
    find_alike(texts, max_similarity=0.7, ...)      the same from an empty pool, in rows of the list

Every answer is the one of the plain loop over the pool with rouge_score's floats, of equal scores the lowest row; only
the work is smaller. Small pools, tokenizers of the caller's own, and installations without numba use rapidfuzz;
larger pools the compiled prefix index of kernels/pool.py. Both give the same answers, so the size where one takes
over from the other is no parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from tunesmith.data.kernels import compiled
from tunesmith.data.matches import FloatArray, IntArray, Matches, from_dup_of
from tunesmith.errors import DataError
from tunesmith.text.rouge import MAX_CHARACTERS, Tokenizer, alphabet_of, f_measure, nth_character, unicode_tokens
from tunesmith.types import Conversation

if TYPE_CHECKING:
    from tunesmith.data.kernels.pool import CompiledPool

_UNKNOWN = nth_character(0)  # every word of a query that no pool text has: it can match nothing

# Below this many texts rapidfuzz ends before the compiled loops are loaded (about a second).
COMPILED_FROM = 4000
_TEXTS_AT_ONCE = 1 << 14
# Below this threshold the prefixes are nearly whole texts, and reading all signatures is faster.
_LOWEST_INDEXED = 0.3


def novelty_text(conversation: Conversation) -> str:
    """What is compared: everything the user says. For a single turn that is the prompt; in a dialogue the last
    message alone ("thanks!") would make strangers look alike."""
    return "\n".join(message.content for message in conversation.messages if message.role == "user")


def find_alike(texts: Iterable[str], *, max_similarity: float, tokenize: Tokenizer = unicode_tokens) -> Matches:
    """Each text above `max_similarity` with an earlier one that stays names the nearest such text."""
    pool = RougeNoveltyIndex(tokenize).add_novel(texts, max_similarity)
    kept = pool.kept
    dup_of = np.where(pool.dup_of < 0, -1, kept[pool.dup_of]) if len(kept) else pool.dup_of
    return from_dup_of(dup_of, pool.score)


class RougeNoveltyIndex:
    """A pool of texts (protocol NoveltyIndex). `tokenize` is unicode_tokens, or rouge_score_tokens for comparisons."""

    def __init__(self, tokenize: Tokenizer = unicode_tokens) -> None:
        self._plain: _PlainPool | None = _PlainPool(tokenize)
        self._compiled: CompiledPool | None = None
        self._alphabet = alphabet_of(tokenize) if compiled() else None

    def __len__(self) -> int:
        return len(self._plain if self._plain is not None else self._large())

    def add(self, text: str) -> int:
        """Put a text into the pool; returns its index. DataError beyond 1,112,063 different words where the loops are
        not compiled."""
        self._grow(1)
        if self._plain is not None:
            return self._plain.add(text)
        self._large().add_all([text])
        return len(self) - 1

    def nearest(self, text: str) -> tuple[float, int]:
        """(highest ROUGE-L F1 against the pool in [0, 1], lowest index of such a text), (0.0, -1) for an empty pool."""
        if not len(self):
            return 0.0, -1
        if self._plain is not None:
            return self._plain.nearest_above(text, 0.0) or (0.0, 0)
        return self._large().nearest(text)

    def nearest_above(self, text: str, threshold: float) -> tuple[float, int] | None:
        """The nearest pool text where its F1 is above `threshold`, else None. A high threshold saves most of the work."""
        if self._plain is not None:
            return self._plain.nearest_above(text, threshold)
        if threshold < _LOWEST_INDEXED:
            score, row = self._large().nearest(text)
            return (score, row) if score > threshold else None
        found, scores, _ = self._large().search([text], threshold, add=False)
        return (float(scores[0]), int(found[0])) if found[0] >= 0 else None

    def add_novel(self, texts: Iterable[str], threshold: float) -> Matches:
        """The greedy loop: each text, in order, against the pool so far; it enters where no F1 is above `threshold`.

        `dup_of` is the index in the pool of the nearest text, `cluster` the text's own index there where it entered.
        Reads the texts once; the pool keeps the word numbers of those that entered.
        """
        unread, parts = iter(texts), [self._add_novel([], threshold)]
        while chunk := list(islice(unread, _TEXTS_AT_ONCE)):
            parts.append(self._add_novel(chunk, threshold))
        return Matches(*(np.concatenate(each) for each in zip(*parts, strict=True)))

    def _add_novel(self, texts: Sequence[str], threshold: float) -> tuple[IntArray, FloatArray, IntArray]:
        self._grow(len(texts))
        if self._plain is None and threshold >= _LOWEST_INDEXED:
            found, scores, own = self._large().search(texts, threshold, add=True)
            return found, scores, np.where(found < 0, own, found)
        found = np.full(len(texts), -1, np.int64)
        scores, own = np.zeros(len(texts)), np.full(len(texts), -1, np.int64)
        for number, text in enumerate(texts):
            near = self.nearest_above(text, threshold)
            if near is None:
                own[number] = self.add(text)
            else:
                scores[number], found[number] = near
        return found, scores, np.where(found < 0, own, found)

    def _grow(self, more: int) -> None:
        """Move to the compiled pool where it will be large enough to pay."""
        if self._plain is None or self._alphabet is None or len(self._plain) + more < COMPILED_FROM:
            return
        from tunesmith.data.kernels.pool import CompiledPool

        self._compiled = CompiledPool(self._alphabet)
        self._compiled.add_all(self._plain.texts)
        self._plain = None

    def _large(self) -> CompiledPool:
        assert self._compiled is not None
        return self._compiled


@dataclass
class _Bucket:
    texts: list[str] = field(default_factory=list)  # one character per word
    indices: list[int] = field(default_factory=list)


class _PlainPool:
    """The pool in Python and rapidfuzz: texts of one length lie together, because within such a bucket F1 depends on
    the LCS alone and no text can pass F1 = 2 * min(m, n) / (m + n). The LCS is over words mapped to characters."""

    def __init__(self, tokenize: Tokenizer) -> None:
        self.texts: list[str] = []
        self._tokenize = tokenize
        self._characters: dict[str, str] = {}  # word -> its character
        self._buckets: dict[int, _Bucket] = {}  # number of words -> texts

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, text: str) -> int:
        words = self._tokenize(text)
        for word in words:
            if word not in self._characters:
                if len(self._characters) + 1 == MAX_CHARACTERS:
                    raise DataError(
                        f"the pool of texts has more than {MAX_CHARACTERS - 1:,} different words",
                        hint="pip install 'tunesmith[data]', set max_similarity to 1 to switch the comparison off, or "
                        "split the data",
                    )
                self._characters[word] = nth_character(len(self._characters) + 1)
        bucket = self._buckets.setdefault(len(words), _Bucket())
        bucket.texts.append("".join([self._characters[word] for word in words]))
        bucket.indices.append(len(self.texts))
        self.texts.append(text)
        return len(self.texts) - 1

    def nearest_above(self, text: str, threshold: float) -> tuple[float, int] | None:
        words = self._tokenize(text)
        query = "".join([self._characters.get(word, _UNKNOWN) for word in words])
        length = len(words)
        best, found = threshold, -1
        bounds = sorted(((f_measure(min(length, n), length, n), n) for n in self._buckets), reverse=True)
        for bound, n in bounds:
            if bound < best or (found < 0 and bound <= threshold):
                break
            bucket = self._buckets[n]
            needed = _least_lcs(best, length, n, strictly=found < 0)
            match = process.extractOne(query, bucket.texts, scorer=LCSseq.similarity, score_cutoff=needed)
            if match is None:
                continue
            score, index = f_measure(int(match[1]), length, n), bucket.indices[match[2]]
            if found < 0 or score > best or index < found:
                best, found = score, index
        return (best, found) if found >= 0 else None


def _least_lcs(score: float, m: int, n: int, *, strictly: bool) -> int:
    """Smallest LCS whose F1, in the floats of f_measure, is above `score`, or not below it. There is one: the caller
    checked the bound."""
    lcs = max(1, int(score * (m + n) / 2) - 1)
    while f_measure(lcs, m, n) < score or (strictly and f_measure(lcs, m, n) <= score):
        lcs += 1
    return lcs
