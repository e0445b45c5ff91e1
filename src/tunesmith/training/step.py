"""One optimiser step: forward, backward, clip, AdamW. The same on every rank of a training.

Owns the order within a step and the refusal of losses that are not numbers. Refuses to know epochs, files and reports.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.forward import draws_dropout, output_head
from tunesmith.training.frozen_blocks import FrozenBlocks
from tunesmith.training.losses import Loss
from tunesmith.training.probing import refuse_loss
from tunesmith.training.ranks import Ranks
from tunesmith.training.schedule import Pack, micro_batches
from tunesmith.training.supervised_rows import supervised_hidden
from tunesmith.training.weights import TrainableWeights

_SAMPLES_AT_ONCE = 8  # where nothing is trained


@dataclass(frozen=True)
class Pace:
    """What changes speed and memory, and no result beyond rounding."""

    micro_batch_size: int | Literal["auto"]  # packs per forward pass; auto = what the memory plan finds
    checkpoint_every_steps: int | None  # None: about once a minute
    keep_checkpoints: int
    log_every_steps: int
    gradient_checkpointing: bool
    share_prefixes: bool
    trim_last_block: bool
    cache_activations: bool
    compile_blocks: bool


@dataclass(frozen=True)
class StepResult:
    """What a step did, over all ranks."""

    loss: float  # mean per unit of the loss
    num_supervised: int
    grad_norm: float  # before clipping
    num_tokens: int  # real tokens
    measures: dict[str, float]  # means per unit of what the loss measures beside its value


class Stepper:
    """Takes the steps of one training."""

    def __init__(
        self, model: PreTrainedModel, loss: Loss, section: Optimisation, pace: Pace, *, learning_rate: float
    ) -> None:
        self.model, self.loss, self.section = model, loss, section
        self.micro_batch_size = (
            1 if pace.micro_batch_size == "auto" else pace.micro_batch_size
        )  # until a plan says more
        self.share_prefixes = pace.share_prefixes and not draws_dropout(model)
        self.trim_last_block = pace.trim_last_block
        self.below: FrozenBlocks | None = None  # the blocks that never change, where they are computed apart
        self.device = next(model.parameters()).device
        self.ranks = Ranks.current()
        self.weights = TrainableWeights(
            model,
            learning_rate=learning_rate,
            betas=(section.adam_beta1, section.adam_beta2),
            weight_decay=section.weight_decay,
        )
        self.is_whole = True  # False while the weights are between two steps

    def batch(self, samples: Samples, indices: Sequence[int]) -> Batch:
        return build_batch(samples, indices, self.device, share_prefixes=self.share_prefixes)

    def take(self, samples: Samples, packs: Sequence[Pack], step: int, learning_rate: float) -> StepResult:
        """The step of this number (from 0) over packs of sample indices."""
        torch.manual_seed(self.section.rng_seed * 1_000_003 + step)  # dropout; forked, so nobody else's draws change
        indices = [index for pack in packs for index in pack]
        units = self.loss.units(samples, indices)
        self.loss.begin_step(samples, indices, self.sum_log_probs)
        sums: Counter[str] = Counter()
        self.weights.drop_gradients()
        for members in micro_batches(self.ranks.share(packs, samples.lengths), self.micro_batch_size):
            batch = self.batch(samples, members)
            sums.update({"loss": 0.0, "tokens": batch.num_tokens})
            self._forward_backward(samples, batch, units, step, sums)
        self.ranks.sum_gradients(self.weights.masters.values())
        totals = self.ranks.sum_named(sums)
        loss = totals.pop("loss") / units
        norm = self.weights.clip(self.section.max_grad_norm)
        if not math.isfinite(norm):
            bad = self.weights.bad_gradients()
            what = f"the gradient of {bad[-1] if bad else 'the weights'} is not finite (loss {loss:.4g})"
            raise self._refusal(samples, self.batch(samples, indices), step, what)
        self.is_whole = False
        self.weights.step(learning_rate)
        self.is_whole = True
        return StepResult(
            loss=loss,
            num_supervised=int(samples.num_targets[indices].sum()),
            grad_norm=norm,
            num_tokens=int(totals.pop("tokens")),
            measures={name: total / units for name, total in totals.items()},
        )

    @torch.no_grad()
    def sum_log_probs(self, samples: Samples, indices: Sequence[int]) -> NDArray[np.float64]:
        """(len(indices),) log-probability of each sample's supervised tokens under the weights of now, summed by sample."""
        found: dict[int, float] = {}
        for members in micro_batches([(index,) for index in indices], _SAMPLES_AT_ONCE):
            batch = self.batch(samples, members)
            hidden = self._hidden(batch)
            sums = batch.sum_by_sample(output_head(self.model).detach().log_probs(hidden, batch.targets, 1.0))
            found.update(zip(batch.samples, sums.tolist(), strict=True))
        return np.array([found[index] for index in indices])

    def _forward_backward(self, samples: Samples, batch: Batch, units: float, step: int, sums: Counter[str]) -> None:
        """Adds this batch's share of the gradient, and its sums."""
        hidden = self._hidden(batch)
        summed, measured = self.loss(output_head(self.model), hidden, batch)
        value = float(summed.detach())
        if not math.isfinite(value):
            raise self._refusal(samples, batch, step, f"the loss is {value}")
        if value == 0.0 and not self.loss.may_be_zero:
            raise self._refusal(samples, batch, step, "the loss is exactly 0, so nothing can be learnt")
        (summed / units).backward()
        sums.update({"loss": value, **measured})

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(N, D) what the head reads."""
        return supervised_hidden(self.model, batch, trim=self.trim_last_block, below=self.below)

    def rehearse(self, samples: Samples, members: Pack) -> None:
        """Forward and backward of one micro batch, as a step runs it; its gradients stay, no weight changes."""
        self.loss.begin_step(samples, members, self.sum_log_probs)
        self._forward_backward(samples, self.batch(samples, members), self.loss.units(samples, members), 0, Counter())

    def _refusal(self, samples: Samples, batch: Batch, step: int, what: str) -> TrainingError:
        rows = [samples.ids[index] for index in batch.samples]
        return refuse_loss(self.model, batch, rows, step, what)
