"""What comes out of the blocks below the first trainable one, computed once per token and kept.

These blocks give the same numbers in every epoch, so later epochs start above them. A sample sees no other sample, so its
rows are kept by sample and fit every pack. They are kept in the dtype they have: nothing is rounded, and a row differs
from one computed again only as far as a matrix product of another height rounds.

Owns the cut through the model and the store. Refuses to know steps and losses.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import StoreError
from tunesmith.model.freezing import block_paths, num_frozen_blocks
from tunesmith.store import disk_error
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.disk_plan import check_activations_disk
from tunesmith.training.forward import draws_dropout, hidden_states
from tunesmith.training.ranks import Ranks


class FrozenBlocks:
    """The lower part of a model for one set of samples. Inside `varlen_forward`."""

    def __init__(self, model: PreTrainedModel, samples: Samples, folder: Path) -> None:
        """Makes room in `folder` for every token's hidden state. StoreError where the disk has less."""
        self._model, self._blocks = model, num_frozen_blocks(model)
        num_tokens, width, dtype = _sizes(model, samples)
        self.num_bytes = num_tokens * width * dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix="activations-") as file:  # gone with the process
                if hasattr(os, "posix_fallocate"):  # without it a disk that fills up later would kill the process
                    os.posix_fallocate(file.fileno(), 0, self.num_bytes)
                kept = torch.from_file(file.name, shared=True, size=num_tokens * width, dtype=dtype)
        except OSError as error:
            raise disk_error(error, folder, self.num_bytes) from error
        self._kept = kept.view(-1, width)
        self._known = np.zeros(len(samples.lengths), dtype=bool)
        self.are_all = self._blocks == len(block_paths(model))  # nothing but a head is trained: no block is left above

    def sentence(self) -> str:
        """What is kept, for the report."""
        size = Ranks.current().size
        each = f" for each of {size} processes" if size > 1 else ""
        return (
            f"the lowest {self._blocks} blocks never change: what they compute is kept from the first epoch on "
            f"({self.num_bytes / 1e6:,.0f} MB on disk{each})"
        )

    def above(self, batch: Batch) -> torch.Tensor:
        """(R, D), or the rows that are read (`reading_rows`): what the output head reads."""
        return upper_hidden(self._model, batch, self.hidden(batch), self._blocks)

    @torch.no_grad()
    def hidden(self, batch: Batch) -> torch.Tensor:
        """(1, R, D) what the first trainable block reads; computed where a sample is new, else taken from the store."""
        members = list(batch.samples)
        if not self._known[members].all():
            computed = lower_hidden(self._model, batch, self._blocks)
            self._kept[batch.token_places] = computed[0, batch.token_rows].to(self._kept.device)
            self._known[members] = True
            return computed
        row_place = torch.empty(batch.input_ids.shape[1], dtype=torch.int64)
        row_place[batch.token_rows] = batch.token_places
        return self._kept[row_place][None].to(batch.input_ids.device)


def keep_frozen_blocks(
    model: PreTrainedModel, samples: Samples, folder: Path, checkpoint_bytes: int
) -> FrozenBlocks | str:
    """FrozenBlocks on every rank, each with a file of its own; or why the disk has no room for all of them beside
    checkpoints of so many bytes, which the first rank finds before any file is there. Called by all ranks."""
    num_tokens, width, dtype = _sizes(model, samples)
    ranks = Ranks.current()

    def refusal() -> str | None:
        size, beside = num_tokens * width * dtype.itemsize, checkpoint_bytes
        try:
            check_activations_disk(folder, size, num_processes=ranks.size, checkpoint_bytes=beside)
        except StoreError as error:
            return str(error)
        return None

    refused = ranks.from_first(refusal)
    if refused is not None:
        return refused
    try:
        return FrozenBlocks(model, samples, folder)
    except StoreError as error:
        return str(error)


def _sizes(model: PreTrainedModel, samples: Samples) -> tuple[int, int, torch.dtype]:
    """(tokens, width, dtype of the activations)."""
    width: int = model.config.get_text_config().hidden_size
    return len(samples.input_ids), width, next(model.get_decoder().parameters()).dtype


def can_stand_apart(model: PreTrainedModel, samples: Samples) -> bool:
    """Whether the lower blocks may be computed apart: some are frozen, none draws dropout, and, asked of one small batch,
    the two parts together give what the whole model gives, bit by bit. Inside `varlen_forward`."""
    number = num_frozen_blocks(model)
    if not number or draws_dropout(model):
        return False
    shortest = int(np.argmin(samples.lengths))
    batch = build_batch(samples, [shortest], next(model.parameters()).device, share_prefixes=False)
    with torch.no_grad():
        whole = hidden_states(model, batch)
        try:
            return torch.equal(upper_hidden(model, batch, lower_hidden(model, batch, number), number), whole)
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return False  # a model that takes no embeddings, or counts its blocks in another way


def lower_hidden(model: PreTrainedModel, batch: Batch, number: int) -> torch.Tensor:
    """(1, R, D) the output of the lowest `number` blocks."""
    found: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with _only_blocks(model, slice(0, number)) as blocks:
        hook = blocks[-1].register_forward_hook(keep)
        try:
            hidden_states(model, batch)
        finally:
            hook.remove()
    return found[0]


def upper_hidden(model: PreTrainedModel, batch: Batch, start: torch.Tensor, number: int) -> torch.Tensor:
    """(R, D), or the rows that are read: what comes of `start` (1, R, D) above the lowest `number` blocks."""
    with _only_blocks(model, slice(number, None)):
        return hidden_states(model, batch, start)


@contextmanager
def _only_blocks(model: PreTrainedModel, which: slice) -> Generator[nn.ModuleList]:
    """Inside, the decoder has these blocks alone."""
    parent, _, name = block_paths(model)[0].rpartition(".")[0].rpartition(".")
    owner = model.get_submodule(parent)
    every: Any = getattr(owner, name)
    chosen = nn.ModuleList(every[which])
    setattr(owner, name, chosen)
    try:
        yield chosen
    finally:
        setattr(owner, name, every)
