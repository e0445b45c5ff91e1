"""Rewards for reinforcement learning: how good a sampled answer is, as a number, or None where nobody can say.

Each member is a builder (options, RewardContext) -> Reward. Owns what is rewarded; refuses to know how answers are
sampled and what training makes of rewards. Adding one is a builder here, its options in recipe/rewards.py, a line below
and a line in docs/alignment.md.
"""

from __future__ import annotations

from tunesmith.protocols import Reward, RewardContext
from tunesmith.recipe.rewards import RewardOptions
from tunesmith.registry import Registry

_HERE = "tunesmith.judging.rewards"

REWARDS = Registry(
    "reward",
    {
        "json_schema": f"{_HERE}.measured:json_schema",
        "fields": f"{_HERE}.measured:fields",
        "exact": f"{_HERE}.measured:exact",
        "rouge_l": f"{_HERE}.measured:rouge_l",
        "python": f"{_HERE}.own_code:python",
        "judge": f"{_HERE}.judge:Judge",
        "reward_model": f"{_HERE}.trained:reward_model",
    },
)


def build_reward(options: RewardOptions, ctx: RewardContext) -> Reward:
    """One listed reward."""
    return REWARDS.load(options.name, where=ctx.where)(options, ctx)
