"""Training rows that hold the questions of an evaluation: the test rows of the recipe, and evaluation files.

A row goes where more than a share of a question's 8-grams stands in it, or any 13-gram (Brown et al. 2020, appendix C; the
half follows Tulu 3, Lambert et al. 2024). Chinese, Japanese, Thai and other text without spaces is compared character by
character, and thirteen characters are about eight words, so there 20 of them make a long n-gram. N-grams do not see a
paraphrase.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from tunesmith.data.filters.parts import shown, text_of
from tunesmith.data.rows import map_rows
from tunesmith.protocols import Verdict
from tunesmith.text.rouge import count_unspaced, unicode_tokens
from tunesmith.types import Conversation, Excluded

NGRAM, LONG_NGRAM = 8, 13
LONG_UNSPACED = 20
"""Characters of a script without spaces that say as much as LONG_NGRAM words: a Chinese word has about one and a half."""

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
    texts = [(text_of(row, "prompt"), row.place) for row in rows]
    return [Question(text, where, are_test_rows) for text, where in texts if text.strip()]


def question_alone(row: Excluded) -> Question | None:
    """The question of an evaluation item that came without a reference answer, None for rows without one."""
    if row.reason != "empty_reply" or not isinstance(row.raw, dict):
        return None
    said = [value for name, value in row.raw.items() if isinstance(value, str) and name != row.field]
    text = "\n".join(said)
    return Question(text, row.where, False) if text.strip() else None


class Contamination:
    """Reasons contaminated_test (a test row of the recipe) and contaminated (an evaluation file).

    num_partial: rows excluded so far for a part of a test row's question, not all of it: rows of one kind that share an instruction.
    """

    def __init__(self, questions: Sequence[Question], *, max_coverage: float, num_threads: int) -> None:
        self._questions = questions
        self._max_coverage = max_coverage
        self._num_threads = num_threads
        self.num_partial = 0

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        if not self._questions or self._max_coverage >= 1 or not rows:
            return [None] * len(rows)
        hits: list[_Hit] = []
        short: list[_Hit] = []
        for hit in self._find(map_rows(partial(text_of, part="all"), rows), LONG_NGRAM):
            is_leak = hit.share > self._max_coverage or hit.is_long
            (hits if is_leak else short).append(hit)
        if short:  # behind the nearest question may stand another one with a longer run
            again = self._find([text_of(rows[hit.row], "all") for hit in short], LONG_UNSPACED)
            hits += [hit._replace(row=short[hit.row].row) for hit in again]
        phrases = Counter(hit.phrase for hit in hits)
        verdicts: list[Verdict] = [None] * len(rows)
        for hit in hits:
            if hit.share > self._max_coverage or phrases[hit.phrase] <= MOST_ROWS_OF_A_PHRASE:
                verdicts[hit.row] = self._verdict(hit)
                self.num_partial += hit.share < 1 and self._questions[hit.question].is_test_row
        return verdicts

    def _find(self, texts: Iterable[str], long_ngram: int) -> Iterator[_Hit]:
        from tunesmith.data.decontamination import EvaluationIndex

        questions = [question.text for question in self._questions]
        index = EvaluationIndex(questions, ngram=NGRAM, long_ngram=long_ngram, num_threads=self._num_threads)
        for start, chunk, matches in index.find_each(texts, max_coverage=self._max_coverage):
            assert matches.spans is not None
            for place in np.flatnonzero(matches.dup_of >= 0).tolist():
                span = chunk[place][slice(*matches.spans[place].tolist())]
                words = unicode_tokens(span)
                share, question = float(matches.score[place]), int(matches.dup_of[place])
                phrase = tuple(words[:LONG_NGRAM])
                yield _Hit(start + place, question, share, phrase, _is_long(words), shown(span, 160))

    def _verdict(self, hit: _Hit) -> Verdict:
        question = self._questions[hit.question]
        reason = "contaminated_test" if question.is_test_row else "contaminated"
        return reason, f"holds {hit.share:.0%} of the question {question.where}: {hit.shown}"


class _Hit(NamedTuple):
    """A row that holds what a question asks."""

    row: int
    question: int
    share: float  # of the question's words
    phrase: tuple[str, ...]  # the first words they share
    is_long: bool  # whether all that they share in a row says as much as LONG_NGRAM words
    shown: str


def _is_long(words: Sequence[str]) -> bool:
    """Of a run of LONG_NGRAM tokens and more; a character of a script without spaces is a part of a word."""
    unspaced = count_unspaced(words)
    return not unspaced or len(words) - unspaced + unspaced * LONG_NGRAM / LONG_UNSPACED >= LONG_NGRAM
