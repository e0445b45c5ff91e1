"""One optimiser step: forward, backward, clip, AdamW. The same on every rank of a training.

Owns the order within a step and the refusal of losses that are not numbers. Refuses to know epochs, files and reports.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.forward import draws_dropout, output_head
from tunesmith.training.frozen_blocks import FrozenBlocks
from tunesmith.training.losses import Loss
from tunesmith.training.probing import find_bad_layer, refuse_loss
from tunesmith.training.ranks import Ranks
from tunesmith.training.schedule import Pack, micro_batches
from tunesmith.training.supervised_rows import supervised_hidden
from tunesmith.training.weights import TrainableWeights

_SAMPLES_AT_ONCE = 8  # where nothing is trained
_REFUSED = "refused"  # among a step's sums: how many ranks have found a loss that ends the training


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


@dataclass(frozen=True)
class Refused:
    """A batch whose loss ends the training, and why."""

    batch: Batch
    what: str


class Stepper:
    """Takes the steps of one training."""

    in_lockstep = False  # whether a rank must make all its passes, whatever it finds, since others take part in them

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
            epsilon=section.adam_epsilon,
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
        refused: Refused | None = None
        for members in micro_batches(self.ranks.share(packs, samples.lengths), self.micro_batch_size):
            batch = self.batch(samples, members)
            sums.update({"loss": 0.0, "tokens": batch.num_tokens})
            found = self._forward_backward(batch, units, sums)
            refused = refused or found
            if refused and not self.in_lockstep:
                break
        self.ranks.sum_gradients(self.weights.masters.values())  # where one rank refuses, the others wait for it here
        totals = self.ranks.sum_named({**sums, _REFUSED: float(refused is not None)})
        if totals.pop(_REFUSED):
            self._refuse(samples, packs, step, refused)
        loss = totals.pop("loss") / units
        norm = self.weights.clip(self.section.max_grad_norm)
        if not math.isfinite(norm):
            self._refuse_gradient(samples, packs, step, loss)
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

    def _forward_backward(self, batch: Batch, units: float, sums: Counter[str]) -> Refused | None:
        """Adds this batch's share of the gradient, and its sums; or refuses its loss."""
        hidden = self._hidden(batch)
        summed, measured = self.loss(output_head(self.model), hidden, batch)
        value, refused = float(summed.detach()), None
        if not math.isfinite(value):
            refused = Refused(batch, f"the loss is {value}")
        elif value == 0.0 and not self.loss.may_be_zero:
            refused = Refused(batch, "the loss is exactly 0, so nothing can be learnt")
        if refused is None or self.in_lockstep:
            (summed / units).backward()
            sums.update({"loss": value, **measured})
        return refused

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """(N, D) what the head reads."""
        return supervised_hidden(self.model, batch, trim=self.trim_last_block, below=self.below)

    def rehearse(self, samples: Samples, members: Pack) -> None:
        """Forward and backward of one micro batch, as a step runs it; its gradients stay, no weight changes."""
        self.loss.begin_step(samples, members, self.sum_log_probs)
        batch = self.batch(samples, members)
        refused = self._forward_backward(batch, self.loss.units(samples, members), Counter())
        self._after_rehearsal(samples, members, refused)

    def _after_rehearsal(self, samples: Samples, members: Pack, refused: Refused | None) -> None:
        """Each rank rehearses for itself, and as often as its memory asks for."""
        if refused is not None:
            layer = find_bad_layer(self.model, refused.batch)
            raise refuse_loss(refused.what, 0, layer, [samples.ids[index] for index in members])

    def _refuse(self, samples: Samples, packs: Sequence[Pack], step: int, refused: Refused | None) -> NoReturn:
        """Called by every rank when one has refused a batch: that one names layer and rows, and all stop."""
        layer = self._bad_layer_of(samples, packs, refused)
        rows = [samples.ids[index] for index in refused.batch.samples] if refused else []
        everyone = self.ranks.gather((refused.what, layer, rows) if refused else None)
        rank, (what, layer, rows) = next((rank, found) for rank, found in enumerate(everyone) if found)
        owner = f"rank {rank} of {self.ranks.size}: " if self.ranks.size > 1 else ""
        self.ranks.stop(refuse_loss(f"{owner}{what}", step, layer, rows))

    def _bad_layer_of(self, samples: Samples, packs: Sequence[Pack], refused: Refused | None) -> str | None:
        return find_bad_layer(self.model, refused.batch) if refused else None

    def _refuse_gradient(self, samples: Samples, packs: Sequence[Pack], step: int, loss: float) -> NoReturn:
        """Called by every rank, each of which has the gradient of all: every one looks at the whole step."""
        bad = self.weights.bad_gradients()
        what = f"the gradient of {bad[-1] if bad else 'the weights'} is not finite (loss {loss:.4g})"
        found: dict[str, list[str]] = {}  # layer -> rows of its first batch
        for members in micro_batches(packs, self.micro_batch_size):
            layer = find_bad_layer(self.model, self.batch(samples, members))
            if layer is not None:
                found.setdefault(layer, [samples.ids[index] for index in members])
        layer, rows = next(iter(found.items()), (None, [samples.ids[index] for pack in packs for index in pack]))
        self.ranks.stop(refuse_loss(what, step, layer, rows))
