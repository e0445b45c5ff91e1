"""A reward model as a loss of the loop: the scalar head's score of each answer, pair by pair.

Owns the samples that such a loss reads and the measurement of scores. The formula is in objectives/preference.py, the head in
model/value_head.py. Refuses to know where pairs come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.chat.renderer import RenderedArrays
from tunesmith.model.value_head import ValueHead, scored_token
from tunesmith.recipe import RewardModel
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.forward import varlen_forward
from tunesmith.training.head import Head
from tunesmith.training.losses import BatchLoss, Measure
from tunesmith.training.objectives.preference import bradley_terry
from tunesmith.training.on_policy import measure_tokens
from tunesmith.training.pairs import num_pairs, pair_rows, pair_samples
from tunesmith.training.preference_losses import batch_loss

MARGIN = "margin"


def scored_pairs(
    pairs: Sequence[tuple[RenderedArrays, RenderedArrays]], ids: Sequence[str], margins: Sequence[float]
) -> Samples:
    """(chosen, rejected) of each pair, as groups of two with one supervised row each: that of the token which ends the answer.

    A supervised row is the one before a target, so the target is one token further: what the template writes after the
    answer, or the last token once more. Nothing but its place is used.
    """
    samples = pair_samples([(_up_to_score(chosen), _up_to_score(rejected)) for chosen, rejected in pairs], ids)
    return dataclasses.replace(samples, columns={**samples.columns, MARGIN: np.repeat(np.array(margins, float), 2)})


def _up_to_score(answer: RenderedArrays) -> RenderedArrays:
    end = scored_token(answer.loss_mask)
    rest = answer.input_ids[end + 1 : end + 2]
    ids = np.append(answer.input_ids[: end + 1], rest if len(rest) else answer.input_ids[end])
    owner = np.append(answer.owner[: end + 1], np.int16(-1))
    return RenderedArrays(ids, owner, np.arange(len(ids)) == end + 1, answer.text)


class RewardModelLoss:
    """Bradley-Terry over pairs of scores. The head is trained because it is attached to the model."""

    may_be_zero = True  # of pairs that are told apart with certainty

    def __init__(self, section: RewardModel, value_head: ValueHead) -> None:
        self._section, self._value_head = section, value_head

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """Nothing: each pair stands for itself."""

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return num_pairs(samples, indices)

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        scores = self._value_head(hidden)  # (samples,)
        at = pair_rows(batch)
        summed = bradley_terry(
            scores[at.chosen],
            scores[at.rejected],
            margin=batch.columns[MARGIN][at.chosen],
            centre_weight=self._section.centre_weight,
        )
        return batch_loss(summed)


def measure_scores(model: PreTrainedModel, value_head: ValueHead, samples: Samples) -> NDArray[np.float64]:
    """(S,) the score of each sample of `scored_pairs` under the weights of now."""
    with varlen_forward(model):
        values = measure_tokens(model, samples, lambda hidden, _: value_head(hidden))
    return values[samples.ends - 1]
