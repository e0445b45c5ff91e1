"""What one optimiser step minimises: a sum over a batch, and what the step divides it by.

Sums, not means: the unit (a supervised token, a pair, a sample) is counted over the whole optimiser step before its first
forward pass, so accumulation, packing and ranks cannot change what it counts. Refuses to know models and schedules.

Legend: N supervised rows of a batch, D width, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from tunesmith.recipe import Optimisation
from tunesmith.registry import Registry
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.head import Head

Sums = Mapping[str, float]
"""What a loss says beside its value: sums over the batch, of which the step reports the mean per unit."""


class Loss(Protocol):
    """What is minimised."""

    may_be_zero: bool  # False: a loss of exactly 0 means that something is wrong

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        """What a step over these samples divides its sum by."""
        ...

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Sums]:
        """hidden (N, D) of the batch's supervised rows -> (summed loss, a scalar in fp32; what else it measured)."""
        ...


LOSSES = Registry("loss", {"cross_entropy": "tunesmith.training.losses:CrossEntropy"})
"""Name -> class, built with the recipe's section."""


class CrossEntropy:
    """-log p of every supervised token, times its weight (C-RLFT, Wang et al. 2023, arXiv 2309.11235, eq. 7: the class
    of a row's source decides what it counts); the mean is by weight."""

    may_be_zero = False

    def __init__(self, section: Optimisation | None = None) -> None:
        del section  # nothing of it changes the formula

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return float(samples.target_weights[list(indices)].sum())

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, Sums]:
        return head.negative_log_likelihood(hidden, batch.targets, batch.row_weights), {}
