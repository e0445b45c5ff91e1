"""Steps of a model whose weights are spread: every pass gathers weights from all ranks, so all must make equally many.

Packs are shared by cost, so one rank may have a micro batch more than another. A rank that has fewer makes idle passes: of the
step's smallest pack, with a loss of 0. Refuses to know how weights are spread.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.losses import Loss
from tunesmith.training.ranks import Ranks
from tunesmith.training.schedule import Pack
from tunesmith.training.step import Pace, Stepper, StepResult


class LockstepStepper(Stepper):
    """A Stepper whose ranks make the same number of passes."""

    def __init__(
        self, model: PreTrainedModel, loss: Loss, section: Optimisation, pace: Pace, *, learning_rate: float
    ) -> None:
        super().__init__(model, loss, section, pace, learning_rate=learning_rate)
        alone = Ranks.current()
        self.ranks = _Lockstep(alone.rank, alone.size, self)
        self._step: tuple[Samples, int] | None = None

    def take(self, samples: Samples, packs: Sequence[Pack], step: int, learning_rate: float) -> StepResult:
        self._step = samples, step
        return super().take(samples, packs, step, learning_rate)

    def idle(self, members: Pack) -> None:
        """A pass that changes nothing: its loss is divided by infinitely many units."""
        assert self._step is not None
        samples, step = self._step
        self._forward_backward(samples, self.batch(samples, members), math.inf, step, Counter())

    def _refusal(self, samples: Samples, batch: Batch, step: int, what: str) -> TrainingError:
        """Without the first bad layer: to look for it every rank would have to make one more pass."""
        rows = [samples.ids[index] for index in batch.samples]
        named = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        return TrainingError(
            f"{what} at step {step + 1}; rows of the batch: {named}",
            where="recipe.train",
            hint="look at these rows (`tunesmith show`), lower train.learning_rate, or set runtime.precision: fp32",
        )


@dataclass(frozen=True)
class _Lockstep(Ranks):
    """Ranks that know how many passes each of them makes."""

    stepper: LockstepStepper | None = None
    idle: list[Pack] = field(default_factory=list[Pack])  # passes that are left of this step

    def share(self, packs: Sequence[Pack], lengths: NDArray[np.int64]) -> list[Pack]:
        assert self.stepper is not None
        shares = [Ranks(rank, self.size).share(packs, lengths) for rank in range(self.size)]
        passes = [math.ceil(len(share) / self.stepper.micro_batch_size) for share in shares]
        smallest = min(packs, key=lambda pack: int(lengths[list(pack)].sum()))
        self.idle[:] = [smallest] * (max(passes) - passes[self.rank])
        return shares[self.rank]

    def sum_gradients(self, weights: Iterable[torch.Tensor]) -> None:
        """The idle passes that are left; then gradients of weights that every rank has whole. The others are summed
        already, where they were formed."""
        assert self.stepper is not None
        for members in self.idle:
            self.stepper.idle(members)
        super().sum_gradients(weight for weight in weights if not isinstance(weight, DTensor))
