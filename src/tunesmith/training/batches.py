"""From tokenized samples on disk to the tensors of one forward pass.

Owns the in-memory form of samples and of a micro batch: the samples of its packs end to end in one row, no padding.
Refuses to know models and optimisers.

Legend: T tokens, N tokens that predict a supervised one, S samples.
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
from tunesmith.training.attention import Segments, build_segments
from tunesmith.training.packing import build_pack, target_rows


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

    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T), restart at 0 with every sample
    segments: Segments
    rows: torch.Tensor  # (N,) positions that predict
    targets: torch.Tensor  # (N,) what they should predict
    samples: tuple[int, ...]  # indices into Samples

    @property
    def num_tokens(self) -> int:
        """Real tokens; there are no others."""
        return self.input_ids.shape[1]


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


def build_batch(samples: Samples, indices: Sequence[int], device: torch.device) -> Batch:
    """Tensors of some samples. They lie in order of length: neighbours of like length share attention calls, and no
    sample sees another, so the order changes nothing else."""
    order = sorted(indices, key=lambda index: (int(samples.lengths[index]), index))
    places = [samples.rows(index) for index in order]
    pack = build_pack([(samples.input_ids[place], samples.loss_mask[place]) for place in places])
    rows, targets = target_rows(pack)
    return Batch(
        input_ids=torch.from_numpy(pack.input_ids)[None].to(device),
        position_ids=torch.from_numpy(pack.position_ids)[None].to(device),
        segments=build_segments([int(samples.lengths[index]) for index in order], device),
        rows=torch.from_numpy(rows).to(device),
        targets=torch.from_numpy(targets).to(device),
        samples=tuple(order),
    )
