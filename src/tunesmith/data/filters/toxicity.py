"""Abusive English, by the linear model of the package alt-profanity-check (trained on Twitter and Wikipedia comments).

A bag of words: it knows insults, not meanings. docs/filters.md says how good it was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tunesmith.data.filters.parts import shown, text_of
from tunesmith.errors import MissingExtra
from tunesmith.protocols import FilterContext, Verdict
from tunesmith.recipe.filters import ToxicityOptions
from tunesmith.types import Conversation

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_ROWS_PER_CALL = 2000


class Toxicity:
    """Reason toxicity: the worst sentence decides, because one insult drowns in a long text."""

    def __init__(self, options: ToxicityOptions, _ctx: FilterContext) -> None:
        if find_spec("profanity_check") is None:
            raise MissingExtra("alt-profanity-check", "toxicity", "the toxicity filter")
        from profanity_check import predict_prob

        self._options = options
        self._predict: Any = predict_prob

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for start in range(0, len(rows), _ROWS_PER_CALL):
            verdicts += self._judge_some(rows[start : start + _ROWS_PER_CALL])
        return verdicts

    def _judge_some(self, rows: Sequence[Conversation]) -> list[Verdict]:
        sentences: list[str] = []
        owners: list[int] = []
        for number, row in enumerate(rows):
            parts = [part for part in _SENTENCE_END.split(text_of(row, self._options.of)) if part.strip()]
            sentences += parts
            owners += [number] * len(parts)
        worst: dict[int, tuple[float, str]] = {}
        probabilities = self._predict(sentences) if sentences else ()
        for owner, sentence, probability in zip(owners, sentences, probabilities, strict=True):
            worst[owner] = max(worst.get(owner, (0.0, "")), (float(probability), sentence))
        return [self._verdict(worst.get(number, (0.0, ""))) for number in range(len(rows))]

    def _verdict(self, worst: tuple[float, str]) -> Verdict:
        probability, sentence = worst
        limit = self._options.max_probability
        return (
            ("toxicity", f"{probability:.2f}, allowed is {limit:g}: {shown(sentence)}") if probability > limit else None
        )
