"""Which packs each optimiser step trains on, and at which learning rate. Pure functions of lengths, numbers and a seed.

Any step can be asked for without the ones before it, so a resumed run needs no cursor but the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.training.packing import plan_packs

Pack = tuple[int, ...]  # indices of the samples that share a pack


@dataclass
class StepPlan:
    """The whole run: every epoch packs all samples anew, in another order."""

    lengths: NDArray[np.int64]
    pack_length: int
    global_batch_size: int  # packs per step; the last step of an epoch may have fewer
    num_epochs: float
    max_steps: int | None
    rng_seed: int
    _packs: dict[int, tuple[Pack, ...]] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """The same in every epoch: the number of packs depends on the lengths alone."""
        return math.ceil(len(self._epoch(0)) / self.global_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run; a part of an epoch is rounded up to whole steps."""
        steps = max(math.ceil(self.num_epochs * self.steps_per_epoch - 1e-9), 1)
        return min(steps, self.max_steps) if self.max_steps is not None else steps

    def packs(self, step: int) -> tuple[Pack, ...]:
        """Packs of step 0, 1, ..."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.global_batch_size
        return self._epoch(epoch)[start : start + self.global_batch_size]

    def _epoch(self, epoch: int) -> tuple[Pack, ...]:
        if epoch not in self._packs:
            first = self._packs.get(0)
            self._packs.clear()
            if first is not None:
                self._packs[0] = first  # steps_per_epoch asks for it all the time
            self._packs[epoch] = plan_packs(self.lengths, self.pack_length, rng_seed=self.rng_seed + epoch).packs
        return self._packs[epoch]


def micro_batches(packs: Sequence[Pack], size: int) -> list[Pack]:
    """Samples of one forward pass each: `size` packs together."""
    return [
        tuple(index for pack in packs[start : start + size] for index in pack) for start in range(0, len(packs), size)
    ]


def learning_rate_at(
    step: int,
    num_steps: int,
    *,
    peak: float,
    schedule: Literal["cosine", "linear", "constant"],
    warmup_ratio: float,
    min_ratio: float,
) -> float:
    """Rate of step 0, 1, ...: a linear rise over warmup_ratio of the steps, then the schedule, down to min_ratio of the peak.
    Never zero: the first step and the last one learn too."""
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    passed = (step - warmup) / (num_steps - warmup)  # in [0, 1)
    left = 1 - passed if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * passed))
    return peak * (min_ratio + (1 - min_ratio) * left)
