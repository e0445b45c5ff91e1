"""Training rows whose prompt is near an earlier one: the likeness that `curate.max_similarity` allows."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.protocols import Verdict
from tunesmith.types import Conversation


class Novelty:
    """Near a test row is "rouge_l_test", near another "rouge_l". Holds every test row from the start; each kept row
    joins. Above `max_similarity` is too near, exactly at it stays; 1 = off."""

    def __init__(self, test_rows: Sequence[Conversation], max_similarity: float) -> None:
        self._max_similarity = max_similarity
        self._index = RougeNoveltyIndex()
        self._pool = list(test_rows)  # the row behind each text of the index
        self._num_test = len(test_rows)
        if max_similarity < 1:
            for row in test_rows:
                self._index.add(novelty_text(row))

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        if self._max_similarity >= 1:
            return [None] * len(rows)
        matches = self._index.add_novel([novelty_text(row) for row in rows], self._max_similarity)
        near, scores = matches.dup_of.tolist(), matches.score.tolist()
        self._pool += [row for row, other in zip(rows, near, strict=True) if other < 0]
        return [None if other < 0 else self._verdict(other, score) for other, score in zip(near, scores, strict=True)]

    def _verdict(self, number: int, score: float) -> Verdict:
        other = self._pool[number]
        reason = "rouge_l_test" if number < self._num_test else "rouge_l"
        return reason, f"ROUGE-L {score:.3f} with {other.source or other.id}, allowed is {self._max_similarity:g}"
