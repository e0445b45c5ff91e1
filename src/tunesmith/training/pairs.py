"""Rendered answers as the samples of preference losses: pairs side by side, labelled answers by themselves.

Two answers to one prompt are a group, so that a loss sees both and their prompt is computed once. Owns the columns that
preference losses read. Refuses to know formulas and where answers come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.chat.renderer import RenderedArrays
from tunesmith.errors import DataError
from tunesmith.training.batches import Batch, Samples

CHOSEN, PAIR, DESIRABLE, REFERENCE = "chosen", "pair", "desirable", "reference"


def pair_samples(pairs: Sequence[tuple[RenderedArrays, RenderedArrays]], ids: Sequence[str]) -> Samples:
    """(chosen, rejected) of each pair, as groups of two."""
    samples = _samples([answer for pair in pairs for answer in pair], [name for name in ids for _ in range(2)])
    columns = {
        CHOSEN: np.tile(np.array([1.0, 0.0]), len(pairs)),
        PAIR: np.repeat(np.arange(len(pairs), dtype=np.float64), 2),
    }
    return dataclasses.replace(samples, columns=columns, group_sizes=np.full(len(pairs), 2, dtype=np.int64))


def labelled_samples(answers: Sequence[RenderedArrays], desirable: Sequence[bool], ids: Sequence[str]) -> Samples:
    """Each answer with its label."""
    return dataclasses.replace(_samples(answers, ids), columns={DESIRABLE: np.array(desirable, dtype=np.float64)})


def with_reference(samples: Samples, log_probs: NDArray[np.float64]) -> Samples:
    """The samples with the reference model's log-probability of each answer (S,), in nats."""
    if log_probs.shape != (len(samples.lengths),):
        raise DataError(f"{len(log_probs)} reference log-probabilities do not belong to {len(samples.lengths)} samples")
    return dataclasses.replace(samples, columns={**samples.columns, REFERENCE: log_probs})


@dataclasses.dataclass(frozen=True)
class PairRows:
    """Where the samples of a batch's pairs stand: (P,) places of the chosen and of the rejected answers, pair by pair."""

    chosen: torch.Tensor
    rejected: torch.Tensor


def num_pairs(samples: Samples, indices: Sequence[int]) -> int:
    """Pairs that these samples belong to."""
    return len(set(samples.columns[PAIR][list(indices)].tolist()))


def pair_rows(batch: Batch) -> PairRows:
    """Raises DataError where a batch holds half a pair."""
    pairs, is_chosen = batch.columns[PAIR], batch.columns[CHOSEN] > 0.5
    chosen, rejected = (torch.nonzero(which)[:, 0] for which in (is_chosen, ~is_chosen))
    chosen, rejected = (places[torch.argsort(pairs[places])] for places in (chosen, rejected))
    if not torch.equal(pairs[chosen], pairs[rejected]):
        raise DataError("a batch holds one answer of a pair without the other")
    return PairRows(chosen, rejected)


def _samples(answers: Sequence[RenderedArrays], ids: Sequence[str]) -> Samples:
    return Samples(
        input_ids=_flat([answer.input_ids for answer in answers], np.int32),
        loss_mask=_flat([answer.loss_mask for answer in answers], np.uint8),
        lengths=np.array([len(answer.input_ids) for answer in answers], dtype=np.int64),
        ids=tuple(ids),
    )


def _flat(values: Sequence[NDArray[Any]], kind: type) -> NDArray[np.integer]:
    return np.concatenate([np.zeros(0, kind), *(each.astype(kind) for each in values)])
