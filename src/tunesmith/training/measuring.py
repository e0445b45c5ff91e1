"""The loss of given answers under a model that does not change: the same forward pass and the same loss layer as training.

Owns the packs of a measurement and its value per sample. Refuses to know where samples come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import output_head, varlen_forward
from tunesmith.training.supervised_rows import supervised_hidden

_TOKENS_AT_ONCE = 2048
"""Tokens of one forward pass, where samples are short: enough to fill a processor, little enough for its memory."""


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
    """Neighbours, as many as fit into one forward pass."""
    group: list[int] = []
    tokens = 0
    for index, length in enumerate(samples.lengths.tolist()):
        if group and tokens + length > _TOKENS_AT_ONCE:
            yield group
            group, tokens = [], 0
        group.append(index)
        tokens += length
    if group:
        yield group
