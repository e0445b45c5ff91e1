"""Filters by what a small language model expects: perplexity, and instruction-following difficulty (IFD).

The model comes as a protocols.TextScorer; its numbers stay in metadata.scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.data.filters.parts import text_of, with_score
from tunesmith.protocols import FilterContext, TextScorer, Verdict
from tunesmith.recipe.score_filters import IfdOptions, PerplexityOptions
from tunesmith.types import Conversation


class Perplexity:
    """exp of the mean loss per token, without a context. Reasons perplexity and, for texts without tokens, unscored."""

    def __init__(self, options: PerplexityOptions, ctx: FilterContext) -> None:
        self._options = options
        self._scorer: TextScorer = ctx.open_scorer(options.model)

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        losses = self._scorer.losses([("", text_of(row, self._options.of)) for row in rows])
        return [self._verdict(row, loss) for row, loss in zip(rows, losses, strict=True)]

    def _verdict(self, row: Conversation, loss: float | None) -> Verdict:
        if loss is None:
            return "unscored", f"the {self._options.of} has no tokens to score"
        value = math.exp(min(loss, 700.0))
        if not self._options.min <= value <= self._options.max:
            allowed = f"allowed are {self._options.min:g} to {self._options.max:g}"
            return "perplexity", f"the {self._options.of} has a perplexity of {value:,.1f}, {allowed}"
        return with_score(row, "perplexity", round(value, 4))


class InstructionDifficulty:
    """IFD = loss(reply | prompt) / loss(reply), Li et al. 2024 (Cherry LLM) equation 4, over the same tokens: every token
    of the reply counts in both. A model of 124 M parameters ranks rows as a 7B one does (Superfiltering, Li et al. 2024).

    Reasons: ifd (above the limit), ifd_rank (not among the highest), unscored.
    """

    def __init__(self, options: IfdOptions, ctx: FilterContext) -> None:
        self._options = options
        self._scorer: TextScorer = ctx.open_scorer(options.model)

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        prompts = ["\n".join(message.content for message in row.prompt if message.role != "system") for row in rows]
        replies = [row.reply or "" for row in rows]
        alone = self._scorer.losses([("", reply) for reply in replies])
        given = self._scorer.losses([(f"{prompt}\n\n", reply) for prompt, reply in zip(prompts, replies, strict=True)])
        values = [
            with_ / without if with_ is not None and without else None
            for with_, without in zip(given, alone, strict=True)
        ]
        good = sorted((value for value in values if value is not None and value <= self._options.max), reverse=True)
        wanted = math.ceil(len(good) * self._options.keep_fraction)
        least = good[wanted - 1] if good else 0.0
        return [self._verdict(row, value, least) for row, value in zip(rows, values, strict=True)]

    def _verdict(self, row: Conversation, value: float | None, least: float) -> Verdict:
        if value is None:
            return "unscored", "the reply has no tokens to score"
        if value > self._options.max:
            return (
                "ifd",
                f"the IFD is {value:.3f}, allowed is {self._options.max:g}: the prompt does not help the reply",
            )
        if value < least:
            return (
                "ifd_rank",
                f"the IFD is {value:.3f}, the highest {self._options.keep_fraction:.0%} begin at {least:.3f}",
            )
        return with_score(row, "ifd", round(value, 6))
