"""Training rows whose prompt is near an earlier one: the likeness that `curate.max_similarity` allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tunesmith.data.keys import Keys, number_of
from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.data.rows import map_rows
from tunesmith.protocols import Verdict
from tunesmith.types import Conversation


class Novelty:
    """Near a test row is "rouge_l_test", near another "rouge_l". Holds every test row from the start; each kept row
    joins. Above `max_similarity` is too near, exactly at it stays; 1 = off. Judges one set of rows."""

    def __init__(self, test_rows: Sequence[Conversation], max_similarity: float) -> None:
        self._max_similarity = max_similarity
        self._index = RougeNoveltyIndex()
        self._test_rows = test_rows
        if max_similarity < 1:
            for text in map_rows(novelty_text, test_rows):
                self._index.add(text)

    def judge_all(self, rows: Sequence[Conversation]) -> Sequence[Verdict]:
        if self._max_similarity >= 1:
            return [None] * len(rows)
        num_test = len(self._test_rows)
        matches = self._index.add_novel(map_rows(novelty_text, rows), self._max_similarity)
        verdicts: list[Verdict] = [None] * len(rows)
        kept = matches.kept  # the row behind each text of the index after the test rows
        for number in np.flatnonzero(matches.dup_of >= 0).tolist():
            other, score = int(matches.dup_of[number]), float(matches.score[number])
            near = self._test_rows[other] if other < num_test else rows[int(kept[other - num_test])]
            reason = "rouge_l_test" if other < num_test else "rouge_l"
            detail = f"ROUGE-L {score:.3f} with {near.place}, allowed is {self._max_similarity:g}"
            verdicts[number] = reason, detail
        return verdicts


class HeldOutOrigins:
    """Reason in_test: rows of an origin that also has test rows, where a person marked them for both sides."""

    def __init__(self, origins: Keys) -> None:
        self._origins = origins

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        if not len(self._origins):
            return iter([None] * len(rows))
        tested = frozenset(self._origins.tolist())
        return (self._verdict(origin, tested) for origin in map_rows(_origin, rows))

    def _verdict(self, origin: str, tested: frozenset[int]) -> Verdict:
        return ("in_test", f"its origin {origin!r} also has test rows") if number_of(origin) in tested else None


def _origin(row: Conversation) -> str:
    return row.origin
