"""The score of a trained reward model. Who loads it is the stage's business (inference/reward_model.py computes it)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.protocols import Attempt, Reward, RewardContext
from tunesmith.recipe.rewards import RewardModelOptions
from tunesmith.types import Score


def reward_model(options: RewardModelOptions, ctx: RewardContext) -> Reward:
    """Scores as they come from the model: no bounds, 0 where it was trained to be centred. Opened at the first answer."""
    if options.model is None:
        raise RecipeError("no reward model is named here", where=ctx.where, hint="name its folder")
    folder = ctx.files.get(options.model, Path(options.model))
    opened: list[Callable[[Sequence[Attempt]], Sequence[float]]] = []

    def score(attempts: Sequence[Attempt]) -> list[Score]:
        if not opened:
            opened.append(ctx.open_reward_model(folder))
        return [_score(value) for value in opened[0](attempts)]

    return score


def _score(value: float) -> Score:
    if math.isfinite(value):
        return Score(value=value)
    return Score(value=None, explanation=f"the reward model gave {value}")
