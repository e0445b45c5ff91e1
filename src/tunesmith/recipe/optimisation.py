"""How weights are stepped: the parameters that pretrain, train and align have in common."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tunesmith.recipe.section import Auto, RngSeed, Section


class Optimisation(Section):
    """How weights are stepped, whatever is minimised."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """Peak learning rate; auto = 2e-4 for lora, dora and qlora, 1e-5 for full."""

    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""

    min_learning_rate_ratio: float = Field(default=0.0, ge=0, le=1)
    """What the schedule falls to, as a share of the peak (cosine, linear)."""

    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""

    num_epochs: float = Field(default=3, gt=0, le=10_000)
    """Passes over the data."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, whatever num_epochs says."""

    global_batch_size: int = Field(default=1, ge=1)
    """Packs per optimiser step, all devices together."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW first moment decay."""

    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW second moment decay."""

    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's divisor: weights whose gradients are about as small take smaller steps."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""

    rng_seed: RngSeed = 17
    """Seed of adapter initialisation, dropout and data order."""

    @model_validator(mode="after")
    def _what_does_not_fall_has_no_end(self) -> Self:
        if self.lr_schedule == "constant" and self.min_learning_rate_ratio:
            raise ValueError(
                f"`min_learning_rate_ratio: {self.min_learning_rate_ratio:g}` is where a rate falls to, and `lr_schedule: constant` "
                "does not fall: leave it out, or take cosine or linear"
            )
        return self
