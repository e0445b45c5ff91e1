"""Training rows that hold the questions of an evaluation: the test rows of the recipe, and evaluation files.

A row goes where more than a share of a question's 8-grams stands in it, or any 13-gram (Brown et al. 2020, appendix C; the
half follows Tulu 3, Lambert et al. 2024). N-grams do not see a paraphrase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.filters.parts import shown, text_of
from tunesmith.protocols import Verdict
from tunesmith.text.rouge import unicode_tokens
from tunesmith.types import Conversation

NGRAM, LONG_NGRAM = 8, 13

MOST_ROWS_OF_A_PHRASE = 10
"""A 13-gram that more training rows share is a phrase of the task (a fixed instruction), not a leak: as in Brown et al.
2020, appendix C. The share of the question decides then alone."""


@dataclass(frozen=True)
class Question:
    """One item of an evaluation."""

    text: str
    where: str
    is_test_row: bool


def questions_of(rows: Sequence[Conversation], *, are_test_rows: bool) -> list[Question]:
    """What the user says in each row; rows without words have no question."""
    texts = [(text_of(row, "prompt"), row.source or row.id) for row in rows]
    return [Question(text, where, are_test_rows) for text, where in texts if text.strip()]


class Contamination:
    """Reasons contaminated_test (a test row of the recipe) and contaminated (an evaluation file)."""

    def __init__(self, questions: Sequence[Question], *, max_coverage: float, num_threads: int) -> None:
        self._questions = questions
        self._max_coverage = max_coverage
        self._num_threads = num_threads

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        if not self._questions or self._max_coverage >= 1 or not rows:
            return [None] * len(rows)
        from tunesmith.data.decontamination import EvaluationIndex

        index = EvaluationIndex(
            [question.text for question in self._questions],
            ngram=NGRAM,
            long_ngram=LONG_NGRAM,
            num_threads=self._num_threads,
        )
        texts = [text_of(row, "all") for row in rows]
        matches = index.find(texts, max_coverage=self._max_coverage)
        spans = matches.spans.tolist() if matches.spans is not None else [[0, 0]] * len(rows)
        hits = [
            (number, item, score, texts[number][slice(*spans[number])])
            for number, (item, score) in enumerate(zip(matches.dup_of.tolist(), matches.score.tolist(), strict=True))
            if item >= 0
        ]
        phrases = Counter(_phrase(span) for _, _, _, span in hits)
        verdicts: list[Verdict] = [None] * len(rows)
        for number, item, score, span in hits:
            if score > self._max_coverage or phrases[_phrase(span)] <= MOST_ROWS_OF_A_PHRASE:
                verdicts[number] = self._verdict(self._questions[item], score, span)
        return verdicts

    def _verdict(self, question: Question, score: float, span: str) -> Verdict:
        reason = "contaminated_test" if question.is_test_row else "contaminated"
        return reason, f"holds {score:.0%} of the question {question.where}: {shown(span, 160)}"


def _phrase(span: str) -> tuple[str, ...]:
    return tuple(unicode_tokens(span)[:LONG_NGRAM])
