"""From tokenized samples on disk to the tensors of one forward pass.

Owns the in-memory form of samples and of a micro batch: the samples of its packs in one row, no padding, common beginnings
once where that pays. Refuses to know models and optimisers.

Legend: R rows of tokens, N supervised tokens to predict, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tunesmith.errors import DataError
from tunesmith.training.prefixes import WORTH_IT, Layout, lay_as_trie, lay_end_to_end
from tunesmith.training.segments import Segments


@dataclass(frozen=True)
class Samples:
    """Every training sample, end to end; those that a loss must see together (a pair, the answers to one prompt) one
    after another, as a group."""

    input_ids: NDArray[np.integer]  # (sum of lengths,)
    loss_mask: NDArray[np.integer]  # (sum of lengths,) 1 where the token is a training target
    lengths: NDArray[np.int64]  # (S,)
    ids: tuple[str, ...]  # row id of each sample, for messages
    loss_weights: NDArray[np.float32] | None = None  # (sum of lengths,) what a target counts; None = 1
    group_sizes: NDArray[np.int64] | None = None  # (G,) samples of each group; None = every sample by itself
    columns: Mapping[str, NDArray[np.floating]] = field(
        default_factory=dict
    )  # (S,) each: what a loss knows of a sample
    token_columns: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)  # (sum of lengths,) or of a token

    def __post_init__(self) -> None:
        total = int(self.lengths.sum())
        weights = () if self.loss_weights is None else (len(self.loss_weights),)
        shapes = {len(self.input_ids), len(self.loss_mask), total, *weights, *map(len, self.token_columns.values())}
        if len(shapes) != 1 or len(self.ids) != len(self.lengths):
            raise DataError(
                f"{len(self.input_ids)} input_ids, {len(self.loss_mask)} mask values and {len(self.ids)} rows do not "
                f"belong to {len(self.lengths)} samples of {total} tokens"
            )
        if not total:
            raise DataError("there is no sample to train on")
        if self.group_sizes is not None and int(self.group_sizes.sum()) != len(self.lengths):
            raise DataError(f"groups of {int(self.group_sizes.sum())} samples in all do not hold {len(self.lengths)}")

    def rows(self, index: int) -> slice:
        """Where a sample lies."""
        end = int(self.ends[index])
        return slice(end - int(self.lengths[index]), end)

    def select(self, indices: Sequence[int]) -> Samples:
        """These samples alone, each by itself: what they count and where they belong is left behind."""
        places = np.concatenate([np.arange(self.rows(index).start, self.rows(index).stop) for index in indices])
        return Samples(
            input_ids=self.input_ids[places],
            loss_mask=self.loss_mask[places],
            lengths=self.lengths[list(indices)],
            ids=tuple(self.ids[index] for index in indices),
        )

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(S,) one past the last token of each sample."""
        return np.cumsum(self.lengths)

    @cached_property
    def num_targets(self) -> NDArray[np.int64]:
        """(S,) tokens of each sample that are predicted: supervised ones, but never a sample's first token."""
        starts = self.ends - self.lengths
        return np.add.reduceat(self.loss_mask.astype(np.int64), starts) - self.loss_mask[starts].astype(np.int64)

    @cached_property
    def target_weights(self) -> NDArray[np.float64]:
        """(S,) what the predicted tokens of each sample count in all; num_targets where nothing is weighted."""
        if self.loss_weights is None:
            return self.num_targets.astype(np.float64)
        counted = self.loss_weights.astype(np.float64) * (self.loss_mask != 0)
        starts = self.ends - self.lengths
        return np.add.reduceat(counted, starts) - counted[starts]

    @cached_property
    def groups(self) -> tuple[range, ...]:
        """Sample indices of each group."""
        sizes = np.ones(len(self.lengths), np.int64) if self.group_sizes is None else self.group_sizes
        ends = np.cumsum(sizes)
        return tuple(range(end - size, end) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True))

    @cached_property
    def group_lengths(self) -> NDArray[np.int64]:
        """(G,) tokens of each group, what its samples begin with in common counted once: the rows it takes at least."""
        if self.group_sizes is None:
            return self.lengths
        return np.array([self._rows_of(group) for group in self.groups], dtype=np.int64)

    def _rows_of(self, group: range) -> int:
        sequences = [self.input_ids[self.rows(index)] for index in group]
        shortest = min(map(len, sequences))
        stacked = np.stack([ids[:shortest] for ids in sequences])
        different = np.flatnonzero((stacked != stacked[0]).any(0))
        shared = int(different[0]) if len(different) else shortest
        return sum(map(len, sequences)) - shared * (len(group) - 1)


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads. Supervised rows stand sample by sample, in the order of `samples`."""

    input_ids: torch.Tensor  # (1, R)
    position_ids: torch.Tensor  # (1, R), restart at 0 with every sample
    segments: Segments
    rows: torch.Tensor  # (N,) rows that predict; the last row of a shared beginning once for every sample
    targets: torch.Tensor  # (N,) what they should predict
    samples: tuple[int, ...]  # indices into Samples
    num_tokens: int  # real tokens of the samples; at least R
    row_weights: torch.Tensor | None = None  # (N,) fp32
    num_rows: tuple[int, ...] = ()  # supervised rows of each sample
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)  # (samples,) each, fp32
    token_columns: Mapping[str, torch.Tensor] = field(default_factory=dict)  # (N,) each, fp32
    token_rows: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(num_tokens,) on the CPU: the row of each token of the samples."""
    token_places: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(num_tokens,) on the CPU: its place in the arrays of Samples."""

    @cached_property
    def read_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(M,) `rows` in order and each once; (N,) where each of `rows` stands among them."""
        return torch.unique(self.rows, return_inverse=True)

    @cached_property
    def sample_of_row(self) -> torch.Tensor:
        """(N,) place in `samples` of the sample that each supervised row belongs to."""
        sizes = torch.tensor(self.num_rows, device=self.rows.device)
        return torch.repeat_interleave(torch.arange(len(sizes), device=self.rows.device), sizes)

    def sum_by_sample(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) values of supervised rows -> (samples,) their sums."""
        return values.new_zeros(len(self.samples)).index_add(0, self.sample_of_row, values)


def load_samples(path: Path, ids: Sequence[str]) -> Samples:
    """Samples of a tokenized artifact. DataError where the file is damaged, holds nothing, or a sample has no target."""
    try:
        arrays = load_file(path)
        samples = Samples(
            arrays["input_ids"],
            arrays["loss_mask"],
            arrays["lengths"].astype(np.int64),
            tuple(ids),
            loss_weights=arrays.get("loss_weights"),
        )
    except (SafetensorError, KeyError, OSError) as error:
        raise DataError(f"the samples cannot be read: {error}", where=str(path)) from error
    empty = np.flatnonzero(samples.target_weights <= 0)
    if len(empty):
        weightless = samples.num_targets[int(empty[0])] > 0
        what = "supervised tokens that all weigh 0" if weightless else "no supervised token"
        raise DataError(
            f"{len(empty)} samples have {what}, first row {samples.ids[int(empty[0])]}",
            where=str(path),
            hint="give their source class a weight above 0, or leave these rows out" if weightless else None,
        )
    return samples


def build_batch(samples: Samples, indices: Sequence[int], device: torch.device, *, share_prefixes: bool) -> Batch:
    """Tensors of some samples, in order of length. No sample sees another, so the order changes nothing.

    share_prefixes: common beginnings stand in the row once (see prefixes.py), where that saves a twentieth.
    """
    order = sorted(indices, key=lambda index: (int(samples.lengths[index]), index))
    layout = _lay([samples.input_ids[samples.rows(index)] for index in order], share_prefixes)
    rows: list[NDArray[np.int64]] = []
    places: list[NDArray[np.int64]] = []  # of the targets, in the arrays of `samples`
    for index, row_of in zip(order, layout.row_of, strict=True):
        place = samples.rows(index)
        predicted = np.flatnonzero(samples.loss_mask[place][1:])  # token t + 1 is predicted by the row of token t
        rows.append(row_of[predicted])
        places.append(predicted + place.start + 1)
    at = np.concatenate(places)
    held = [np.arange(samples.rows(index).start, samples.rows(index).stop) for index in order]

    def take(values: NDArray[Any], where: NDArray[np.int64] | list[int], kind: type) -> torch.Tensor:
        return torch.from_numpy(values[where].astype(kind)).to(device)

    return Batch(
        input_ids=torch.from_numpy(layout.input_ids)[None].to(device),
        position_ids=torch.from_numpy(layout.position_ids)[None].to(device),
        segments=layout.segments,
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=take(samples.input_ids, at, np.int64),
        samples=tuple(order),
        num_tokens=int(samples.lengths[order].sum()),
        row_weights=None if samples.loss_weights is None else take(samples.loss_weights, at, np.float32),
        num_rows=tuple(len(each) for each in rows),
        columns={name: take(values, order, np.float32) for name, values in samples.columns.items()},
        token_columns={name: take(values, at, np.float32) for name, values in samples.token_columns.items()},
        token_rows=torch.from_numpy(np.concatenate(layout.row_of)),
        token_places=torch.from_numpy(np.concatenate(held)),
    )


def _lay(sequences: list[NDArray[np.integer]], share_prefixes: bool) -> Layout:
    if share_prefixes and len(sequences) > 1 and (layout := lay_as_trie(sequences)).ratio >= WORTH_IT:
        return layout
    return lay_end_to_end(sequences)
