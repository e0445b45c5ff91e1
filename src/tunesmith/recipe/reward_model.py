"""Parameters of a reward model: what it learns from pairs of answers, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.recipe.optimisation import Optimisation
from tunesmith.recipe.section import Auto


class RewardModel(Optimisation):
    """The tuned model learns to tell better answers from worse ones: a scalar head, read at the token that ends an answer."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """Peak learning rate; auto = 1e-4 for an adapter, 1e-5 for all weights, 1e-3 for the head alone."""

    num_epochs: float = Field(default=1, gt=0, le=10_000)
    """Passes over the pairs."""

    trainable_layers: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    """Of what `train` changed, only this many topmost blocks go on changing beside the head; 0 = the head alone."""

    margin_weight: float = Field(default=0.0, ge=0)
    """The better answer should win by this times the difference of the pair's own scores, where it has them."""

    centre_weight: float = Field(default=0.01, ge=0)
    """Weight of the square of a pair's summed scores, which keeps scores around 0; 0 = off."""

    held_out_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pairs, by origin, that is only measured, where no pair is marked as a test row."""
