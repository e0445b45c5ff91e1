"""Several rewards as one number. Owns the sum; knows no member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.judging.rewards import build_reward
from tunesmith.protocols import Attempt, RewardContext
from tunesmith.recipe.rewards import RewardOptions
from tunesmith.types import Score


@dataclass(frozen=True)
class Rewarded:
    """total: weighted sum, None where any part could not be scored. parts: by name, in the recipe's order."""

    total: float | None
    parts: dict[str, Score]

    @property
    def explanation(self) -> str:
        """Why it is unscored; "" where it is not."""
        missing = [f"{name}: {score.explanation}" for name, score in self.parts.items() if score.value is None]
        return "; ".join(missing)


class WeightedRewards:
    """The rewards a recipe lists, weighted and summed.

    An answer that one of them cannot score has no total: a sum over the rest would be lower (or higher) than its
    neighbours' for no fault of the answer, and a group is compared by its totals.
    """

    def __init__(self, listed: Sequence[RewardOptions], ctx: RewardContext) -> None:
        self._parts = {
            name: (options.weight, build_reward(options, ctx))
            for name, options in zip(names_of(listed), listed, strict=True)
        }

    def __call__(self, attempts: Sequence[Attempt]) -> list[Rewarded]:
        """One per attempt, in their order."""
        if not attempts:
            return []
        scores = {name: list(reward(attempts)) for name, (_, reward) in self._parts.items()}
        return [self._sum({name: column[row] for name, column in scores.items()}) for row, _ in enumerate(attempts)]

    def _sum(self, parts: dict[str, Score]) -> Rewarded:
        total = 0.0
        for name, score in parts.items():
            if score.value is None:
                return Rewarded(None, parts)
            total += self._parts[name][0] * score.value
        return Rewarded(total, parts)


def names_of(listed: Sequence[RewardOptions]) -> list[str]:
    """json_schema, fields, python, python_2: a name that is listed again gets a number."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for options in listed:
        counts[options.name] = counts.get(options.name, 0) + 1
        names.append(options.name if counts[options.name] == 1 else f"{options.name}_{counts[options.name]}")
    return names
