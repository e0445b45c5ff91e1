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

from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Samples
from tunesmith.training.losses import Loss
from tunesmith.training.probing import find_bad_layer
from tunesmith.training.ranks import Ranks
from tunesmith.training.schedule import Pack
from tunesmith.training.step import Pace, Refused, Stepper, StepResult


class LockstepStepper(Stepper):
    """A Stepper whose ranks make the same number of passes."""

    in_lockstep = True

    def __init__(
        self, model: PreTrainedModel, loss: Loss, section: Optimisation, pace: Pace, *, learning_rate: float
    ) -> None:
        super().__init__(model, loss, section, pace, learning_rate=learning_rate)
        alone = Ranks.current()
        self.ranks = _Lockstep(alone.rank, alone.size, self)
        self._samples: Samples | None = None  # of this step

    def take(self, samples: Samples, packs: Sequence[Pack], step: int, learning_rate: float) -> StepResult:
        self._samples = samples
        return super().take(samples, packs, step, learning_rate)

    def idle(self, members: Pack) -> None:
        """A pass that changes nothing: its loss is divided by infinitely many units."""
        assert self._samples is not None
        self._forward_backward(self.batch(self._samples, members), math.inf, Counter())

    def _after_rehearsal(self, samples: Samples, members: Pack, refused: Refused | None) -> None:
        """All ranks rehearse together, the same micro batch."""
        if self.ranks.any(refused is not None):
            self._refuse(samples, [members], 0, refused)

    def _bad_layer_of(self, samples: Samples, packs: Sequence[Pack], refused: Refused | None) -> str | None:
        """The search is one more pass, which every rank makes: one that has refused nothing, of the smallest pack."""
        batch = refused.batch if refused else self.batch(samples, _smallest(packs, samples.lengths))
        return find_bad_layer(self.model, batch)


@dataclass(frozen=True)
class _Lockstep(Ranks):
    """Ranks that know how many passes each of them makes."""

    stepper: LockstepStepper | None = None
    idle: list[Pack] = field(default_factory=list[Pack])  # passes that are left of this step

    def share(self, packs: Sequence[Pack], lengths: NDArray[np.int64]) -> list[Pack]:
        assert self.stepper is not None
        shares = [Ranks(rank, self.size).share(packs, lengths) for rank in range(self.size)]
        passes = [math.ceil(len(share) / self.stepper.micro_batch_size) for share in shares]
        self.idle[:] = [_smallest(packs, lengths)] * (max(passes) - passes[self.rank])
        return shares[self.rank]

    def sum_gradients(self, weights: Iterable[torch.Tensor]) -> None:
        """The idle passes that are left; then gradients of weights that every rank has whole. The others are summed
        already, where they were formed."""
        assert self.stepper is not None
        for members in self.idle:
            self.stepper.idle(members)
        super().sum_gradients(weight for weight in weights if not isinstance(weight, DTensor))


def _smallest(packs: Sequence[Pack], lengths: NDArray[np.int64]) -> Pack:
    return min(packs, key=lambda pack: int(lengths[list(pack)].sum()))
