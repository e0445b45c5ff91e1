"""Pairs for a reward model: which are learnt from, which are only measured, which stay out, all as tokens.

Owns the split: no prompt and no origin is on both sides, and nothing that `evaluate` asks is learnt from. Refuses to know
the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.chat.renderer import Renderer
from tunesmith.data.identity import prompt_key
from tunesmith.data.keys import number_of
from tunesmith.data.split import TEST, UNDECIDED, decide_splits
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import RewardModel
from tunesmith.stages.answers import Answers, check_prefer_made_pairs, read_preferences, render_pairs, without_repeats
from tunesmith.stages.held_out import apart_from_test
from tunesmith.stages.tokenize import TASK, length_limit_of
from tunesmith.text.jsonl import read_records
from tunesmith.training.batches import Samples
from tunesmith.training.reward_model import scored_pairs
from tunesmith.types import Excluded, Inputs, Preference, Task

_WHERE = "recipe.reward_model"


@dataclass
class RewardPairs:
    """The pairs of both sides as samples, and what stays out. held_out is None where there is none."""

    learnt: Samples
    held_out: Samples | None
    dropped: list[Excluded] = field(default_factory=list[Excluded])


def render_reward_pairs(section: RewardModel, inputs: Inputs, renderer: Renderer) -> RewardPairs:
    """Both sides of the pairs. No prompt and no origin is on both."""
    # one token stands behind the one that is scored
    limit = min(length_limit_of(inputs), int(inputs["base_model"].facts["context_length"]) - 1)
    task = read_records(inputs["curate"].file(TASK), Task)[0]
    rows, repeated = without_repeats(read_preferences(inputs))
    if not rows:
        check_prefer_made_pairs(inputs)
        raise RecipeError(
            "there are no pairs to learn from: expected rows with `chosen` and `rejected`, or a `prefer` stage that makes them",
            where=_WHERE,
            hint="see docs/alignment.md",
        )
    learnt, held_out, dropped = split_pairs(rows, section)
    learnt, seen = apart_from_test(learnt, inputs)
    dropped += repeated + seen
    sides: list[Samples | None] = []
    for side in (learnt, held_out):
        answers = Answers()
        render_pairs(side, task, renderer, limit, answers)
        dropped += answers.dropped
        margins = {row.id: section.margin_weight * _margin(row) for row in side}
        of_each = [margins[name] for name in answers.ids]
        pairs = list(zip(answers.first, answers.second, strict=True))
        sides.append(scored_pairs(pairs, answers.ids, of_each) if pairs else None)
    if sides[0] is None:
        first = dropped[0] if dropped else Excluded(reason="held_out", detail="every pair is held out", where=_WHERE)
        raise DataError(
            f"none of {len(rows)} pairs can be learnt from; the first: {first.reason}: {first.detail}",
            where=first.where,
        )
    return RewardPairs(sides[0], sides[1], dropped)


def _margin(row: Preference) -> float:
    """How much better the chosen answer is by the pair's own scores; 0 where it has none, or where they contradict it."""
    if "chosen" not in row.scores or "rejected" not in row.scores:
        return 0.0
    return max(row.scores["chosen"] - row.scores["rejected"], 0.0)


def split_pairs(
    rows: Sequence[Preference], section: RewardModel
) -> tuple[list[Preference], list[Preference], list[Excluded]]:
    """(to learn from, held out, left out): what is marked as a test row is held out; where nothing is, a share by origin."""
    dropped = [
        Excluded(reason="alike", detail="both answers are the same text", where=row.source or row.id)
        for row in rows
        if row.chosen.strip() == row.rejected.strip()
    ]
    rows = [row for row in rows if row.chosen.strip() != row.rejected.strip()]
    origins = np.array([number_of(row.origin) for row in rows], np.uint64)
    sides = np.array([TEST if row.split == "test" else UNDECIDED for row in rows], np.uint8)
    fraction = 0.0 if (sides == TEST).any() else section.held_out_fraction
    is_test = decide_splits(origins, sides, fraction, section.rng_seed) == TEST
    held_out = [row for row, test in zip(rows, is_test, strict=True) if test]
    shown = {prompt_key(row) for row in held_out}
    learnt: list[Preference] = []
    for row in (row for row, test in zip(rows, is_test, strict=True) if not test):
        if prompt_key(row) in shown:
            detail = "a held-out pair has this prompt"
            dropped.append(Excluded(reason="held_out_prompt", detail=detail, where=row.source or row.id))
        else:
            learnt.append(row)
    return learnt, held_out, dropped
