"""How near a text is to the nearest one of a growing pool, by ROUGE-L F1: exact, one thread, no numpy.

Every answer is the one of the plain loop over the pool with rouge_score's floats; only the work is smaller. Texts of
one length lie together, because within such a bucket F1 depends on the LCS alone and no text can pass
F1 = 2 * min(m, n) / (m + n). The LCS itself is bit-parallel over words mapped to characters. This carries pools of
some 100,000 texts; a compiled kernel with a prefix filter would stand behind the same two methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from tunesmith.errors import DataError
from tunesmith.text.rouge import MAX_CHARACTERS, Tokenizer, f_measure, nth_character, unicode_tokens
from tunesmith.types import Conversation

_UNKNOWN = nth_character(0)  # every word of a query that no pool text has: it can match nothing


def novelty_text(conversation: Conversation) -> str:
    """What is compared: everything the user says. For a single turn that is the prompt; in a dialogue the last
    message alone ("thanks!") would make strangers look alike."""
    return "\n".join(message.content for message in conversation.messages if message.role == "user")


@dataclass
class _Bucket:
    texts: list[str] = field(default_factory=list)  # one character per word
    indices: list[int] = field(default_factory=list)


class RougeNoveltyIndex:
    """A pool of texts (protocol NoveltyIndex). `tokenize` is unicode_tokens, or rouge_score_tokens for comparisons."""

    def __init__(self, tokenize: Tokenizer = unicode_tokens) -> None:
        self._tokenize = tokenize
        self._characters: dict[str, str] = {}  # word -> its character
        self._buckets: dict[int, _Bucket] = {}  # number of words -> texts
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, text: str) -> int:
        """Put a text into the pool; returns its index. DataError beyond 1,112,063 different words."""
        words = self._tokenize(text)
        for word in words:
            if word not in self._characters:
                if len(self._characters) + 1 == MAX_CHARACTERS:
                    raise DataError(
                        f"the pool of texts has more than {MAX_CHARACTERS - 1:,} different words",
                        hint="set max_similarity to 1 to switch the comparison off, or split the data",
                    )
                self._characters[word] = nth_character(len(self._characters) + 1)
        bucket = self._buckets.setdefault(len(words), _Bucket())
        bucket.texts.append("".join([self._characters[word] for word in words]))
        bucket.indices.append(self._size)
        self._size += 1
        return self._size - 1

    def nearest(self, text: str) -> tuple[float, int]:
        """(highest ROUGE-L F1 against the pool in [0, 1], index of such a text), (0.0, -1) for an empty pool."""
        if not self._size:
            return 0.0, -1
        return self.nearest_above(text, 0.0) or (0.0, 0)

    def nearest_above(self, text: str, threshold: float) -> tuple[float, int] | None:
        """The nearest pool text where its F1 is above `threshold`, else None. A high threshold saves most of the work."""
        words = self._tokenize(text)
        query = "".join([self._characters.get(word, _UNKNOWN) for word in words])
        length = len(words)
        best, found = threshold, -1
        bounds = sorted(((f_measure(min(length, n), length, n), n) for n in self._buckets), reverse=True)
        for bound, n in bounds:
            if bound <= best:
                break
            bucket = self._buckets[n]
            match = process.extractOne(
                query, bucket.texts, scorer=LCSseq.similarity, score_cutoff=_least_lcs_above(best, length, n)
            )
            if match is not None:
                best, found = f_measure(int(match[1]), length, n), bucket.indices[match[2]]
        return (best, found) if found >= 0 else None


def _least_lcs_above(score: float, m: int, n: int) -> int:
    """Smallest LCS whose F1, in the floats of f_measure, is above `score`. There is one: the caller checked the bound."""
    lcs = max(1, int(score * (m + n) / 2) - 1)
    while f_measure(lcs, m, n) <= score:
        lcs += 1
    return lcs
