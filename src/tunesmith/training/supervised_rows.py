"""What losses read: hidden states of the rows that predict something, with all that may be left out left out.

Owns the choice between the whole model and its upper part. Refuses to know losses and heads.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from tunesmith.training.batches import Batch
from tunesmith.training.forward import hidden_states
from tunesmith.training.frozen_blocks import FrozenBlocks
from tunesmith.training.last_block import reading_rows


def supervised_hidden(
    model: PreTrainedModel, batch: Batch, *, trim: bool, below: FrozenBlocks | None = None
) -> torch.Tensor:
    """(N, D) what the output head reads at `batch.rows`. Inside `varlen_forward`.

    trim: leave out of the last block what no head reads. below: what computes the frozen blocks at the bottom, where they
    are kept apart.
    """
    rows, places = batch.read_rows
    if below is not None and below.are_all:
        trim = False  # the last block's rows are kept whole
    with reading_rows(model, rows if trim else None) as only_these:
        hidden = hidden_states(model, batch) if below is None else below.above(batch)
    return hidden.index_select(0, places if only_these else batch.rows)
