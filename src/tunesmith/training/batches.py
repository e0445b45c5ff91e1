"""From tokenized samples on disk to the tensors of one forward pass.

Owns the in-memory form of samples and of a micro batch: the samples of its packs in one row, no padding, common beginnings
once where that pays. Refuses to know models and optimisers.

Legend: R rows of tokens, N supervised tokens to predict, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tunesmith.errors import DataError
from tunesmith.training.attention import Segments
from tunesmith.training.prefixes import WORTH_IT, Layout, lay_as_trie, lay_end_to_end


@dataclass(frozen=True)
class Samples:
    """Every training sample, end to end."""

    input_ids: NDArray[np.integer]  # (sum of lengths,)
    loss_mask: NDArray[np.integer]  # (sum of lengths,) 1 where the token is a training target
    lengths: NDArray[np.int64]  # (S,)
    ids: tuple[str, ...]  # row id of each sample, for messages

    def __post_init__(self) -> None:
        total = int(self.lengths.sum())
        shapes = {len(self.input_ids), len(self.loss_mask), total}
        if len(shapes) != 1 or len(self.ids) != len(self.lengths):
            raise DataError(
                f"{len(self.input_ids)} input_ids, {len(self.loss_mask)} mask values and {len(self.ids)} rows do not "
                f"belong to {len(self.lengths)} samples of {total} tokens"
            )
        if not total:
            raise DataError("there is no sample to train on")

    def rows(self, index: int) -> slice:
        """Where a sample lies."""
        end = int(self.ends[index])
        return slice(end - int(self.lengths[index]), end)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(S,) one past the last token of each sample."""
        return np.cumsum(self.lengths)

    @cached_property
    def num_targets(self) -> NDArray[np.int64]:
        """(S,) tokens of each sample that are predicted: supervised ones, but never a sample's first token."""
        starts = self.ends - self.lengths
        return np.add.reduceat(self.loss_mask.astype(np.int64), starts) - self.loss_mask[starts].astype(np.int64)


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads."""

    input_ids: torch.Tensor  # (1, R)
    position_ids: torch.Tensor  # (1, R), restart at 0 with every sample
    segments: Segments
    rows: torch.Tensor  # (N,) rows that predict; the last row of a shared beginning once for every sample
    targets: torch.Tensor  # (N,) what they should predict
    samples: tuple[int, ...]  # indices into Samples
    num_tokens: int  # real tokens of the samples; at least R


def load_samples(path: Path, ids: Sequence[str]) -> Samples:
    """Samples of a tokenized artifact. DataError where the file is damaged, holds nothing, or a sample has no target."""
    try:
        arrays = load_file(path)
        samples = Samples(arrays["input_ids"], arrays["loss_mask"], arrays["lengths"].astype(np.int64), tuple(ids))
    except (SafetensorError, KeyError, OSError) as error:
        raise DataError(f"the samples cannot be read: {error}", where=str(path)) from error
    empty = np.flatnonzero(samples.num_targets < 1)
    if len(empty):
        raise DataError(
            f"{len(empty)} samples have no supervised token, first row {samples.ids[int(empty[0])]}", where=str(path)
        )
    return samples


def build_batch(samples: Samples, indices: Sequence[int], device: torch.device, *, share_prefixes: bool) -> Batch:
    """Tensors of some samples, in order of length. No sample sees another, so the order changes nothing.

    share_prefixes: common beginnings stand in the row once (see prefixes.py), where that saves a twentieth.
    """
    order = sorted(indices, key=lambda index: (int(samples.lengths[index]), index))
    layout = _lay([samples.input_ids[samples.rows(index)] for index in order], share_prefixes)
    rows: list[NDArray[np.int64]] = []
    targets: list[NDArray[np.integer]] = []
    for index, row_of in zip(order, layout.row_of, strict=True):
        place = samples.rows(index)
        predicted = np.flatnonzero(samples.loss_mask[place][1:])  # token t + 1 is predicted by the row of token t
        rows.append(row_of[predicted])
        targets.append(samples.input_ids[place][predicted + 1])
    return Batch(
        input_ids=torch.from_numpy(layout.input_ids)[None].to(device),
        position_ids=torch.from_numpy(layout.position_ids)[None].to(device),
        segments=layout.segments,
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device),
        samples=tuple(order),
        num_tokens=int(samples.lengths[order].sum()),
    )


def _lay(sequences: list[NDArray[np.integer]], share_prefixes: bool) -> Layout:
    if share_prefixes and len(sequences) > 1 and (layout := lay_as_trie(sequences)).ratio >= WORTH_IT:
        return layout
    return lay_end_to_end(sequences)
