"""Training on answers that the model itself gives while it is trained: a rollout, some steps on it, the next rollout.

Owns when a rollout is drawn, and what is measured on its tokens before the first step. Refuses to know how answers are
sampled and rewarded: `draw` does that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.packing import plan_packs
from tunesmith.training.schedule import Pack
from tunesmith.training.sources import spell_out
from tunesmith.training.supervised_rows import supervised_hidden

_GROUPS_AT_ONCE = 1  # of a measurement: answers to one prompt, which is computed once


class OnPolicy:
    """A source of samples: rollout n gives those of steps n * rollout_epochs and on. draw(n): the samples of rollout n, under
    the weights of now."""

    def __init__(
        self,
        draw: Callable[[int], Samples],
        *,
        num_rollouts: int,
        rollout_epochs: int,
        max_steps: int | None,
        pack_length: int,
        rng_seed: int,
    ) -> None:
        self._draw, self._epochs = draw, rollout_epochs
        self._pack_length, self._rng_seed = pack_length, rng_seed
        steps = num_rollouts * rollout_epochs
        self.num_steps = steps if max_steps is None else min(steps, max_steps)
        self._current: tuple[int, Samples] | None = None

    def take(self, step: int) -> tuple[Samples, tuple[Pack, ...]]:
        rollout = step // self._epochs
        if self._current is None or self._current[0] != rollout:
            self._current = rollout, self._draw(rollout)
        samples = self._current[1]
        longest = int(samples.group_lengths.max())
        plan = plan_packs(samples.group_lengths, max(self._pack_length, longest), rng_seed=self._rng_seed + step)
        return samples, spell_out(samples, plan.packs)

    def is_stopping_place(self, step: int) -> bool:
        """Between two rollouts: one is drawn again from the same weights and seed."""
        return step % self._epochs == 0


@torch.no_grad()
def measure_tokens(
    model: PreTrainedModel, samples: Samples, value_of: Callable[[torch.Tensor, Batch], torch.Tensor]
) -> NDArray[np.float64]:
    """(sum of lengths,) value_of(hidden (N, D), batch) -> (N,) of the rows that predict each supervised token, 0 elsewhere.

    Inside `varlen_forward`. No sample sees another.
    """
    values = np.zeros(len(samples.input_ids))
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for start in range(0, len(samples.groups), _GROUPS_AT_ONCE):
        members = [index for group in samples.groups[start : start + _GROUPS_AT_ONCE] for index in group]
        batch = build_batch(samples, members, device, share_prefixes=True)
        found = value_of(supervised_hidden(model, batch, trim=True), batch).double().cpu().numpy()
        ends = np.cumsum(batch.num_rows)
        for index, first, end in zip(batch.samples, [0, *ends], ends, strict=False):
            rows = samples.rows(index)
            places = np.flatnonzero(samples.loss_mask[rows][1:]) + rows.start + 1
            values[places] = found[first:end]
    model.train(training)
    return values


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Generator[None]:
    """Inside, these parameters of the model have these values."""
    parameters = {name: model.get_parameter(name) for name in weights}
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
