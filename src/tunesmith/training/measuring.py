"""The loss of given answers under a model that does not change: the same forward pass and the same loss layer as training.

Owns the packs of a measurement and its value per sample. Refuses to know where samples come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import output_head, varlen_forward
from tunesmith.training.prefixes import num_common
from tunesmith.training.supervised_rows import supervised_hidden

_ROWS_AT_ONCE = 2048
"""Rows of one forward pass, where samples are short: enough to fill a processor, little enough for its memory."""


@dataclass(frozen=True)
class TokenLoss:
    """Summed cross-entropy of the supervised tokens of one sample, in nats, and how many there are."""

    total: float
    num_tokens: int


@torch.no_grad()
def measure_losses(
    model: PreTrainedModel, samples: Samples, on_done: Callable[[int, TokenLoss], None]
) -> list[TokenLoss]:
    """Loss of each sample, in their order; on_done(index, loss) as each one is measured.

    No sample sees another; its value depends on its neighbours only as far as a matrix product rounds.
    """
    device = next(model.parameters()).device
    head = output_head(model).detach()
    losses: dict[int, TokenLoss] = {}
    with varlen_forward(model):
        for indices in _groups(samples):
            batch = build_batch(samples, indices, device, share_prefixes=True)
            hidden = supervised_hidden(model, batch, trim=True)
            totals = batch.sum_by_sample(-head.log_probs(hidden, batch.targets, 1.0)).tolist()
            for index, total, count in zip(batch.samples, totals, batch.num_rows, strict=True):
                losses[index] = TokenLoss(total, count)
                on_done(index, losses[index])
    return [losses[index] for index in range(len(samples.lengths))]


def _groups(samples: Samples) -> Iterator[list[int]]:
    """Neighbours, as many as fit into one forward pass. What one begins with like the one before it takes no rows again."""
    group: list[int] = []
    num_rows = 0
    before = np.empty(0, np.int32)
    for index, length in enumerate(samples.lengths.tolist()):
        ids = samples.input_ids[samples.rows(index)]
        more = length - num_common(before, ids)
        if group and num_rows + more > _ROWS_AT_ONCE:
            yield group
            group, num_rows, more = [], 0, length
        group.append(index)
        num_rows += more
        before = ids
    if group:
        yield group
