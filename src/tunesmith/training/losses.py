"""What one optimiser step minimises: a sum over a batch, and what the step divides it by.

Sums, not means: the unit (a supervised token, a pair, a sample) is counted over the whole optimiser step before its first
forward pass, so accumulation, packing and ranks cannot change what it counts. Refuses to know models and schedules.

Legend: N supervised rows of a batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.recipe import Optimisation
from tunesmith.registry import Registry
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.head import Head

BatchLoss = tuple[torch.Tensor, Mapping[str, float]]
"""(summed loss, a scalar in fp32; what else was measured, summed over the batch: the step reports the mean per unit)."""

Measure = Callable[[Samples, Sequence[int]], NDArray[np.float64]]
"""Log-probability of each of these samples' supervised tokens under the weights of now, summed by sample, without gradient."""


class Loss(Protocol):
    """What is minimised."""

    may_be_zero: bool  # False: a loss of exactly 0 means that something is wrong

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        """What a step over these samples divides its sum by."""
        ...

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """Before the first forward pass of a step over these samples: what only the whole step can tell."""
        ...

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        """hidden (N, D): what the output head reads at each row that predicts something."""
        ...


LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "tunesmith.training.losses:CrossEntropy",
        "dpo": "tunesmith.training.preference_losses:build_dpo",
        "ipo": "tunesmith.training.preference_losses:build_ipo",
        "orpo": "tunesmith.training.preference_losses:build_orpo",
        "simpo": "tunesmith.training.preference_losses:build_simpo",
    },
)
"""Name -> what builds the loss from the recipe's section."""


class CrossEntropy:
    """-log p of every supervised token, times its weight (C-RLFT, Wang et al. 2023, arXiv 2309.11235, eq. 7: the class
    of a row's source decides what it counts); the mean is by weight."""

    may_be_zero = False

    def __init__(self, section: Optimisation | None = None) -> None:
        del section  # nothing of it changes the formula

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """Nothing: each token stands for itself."""

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return float(samples.target_weights[list(indices)].sum())

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        return head.negative_log_likelihood(hidden, batch.targets, batch.row_weights), {}
