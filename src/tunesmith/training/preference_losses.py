"""Preference objectives as losses of the loop: from the supervised rows of a batch to its pairs or labelled answers.

The formulas are in objectives/preference.py. A step's unit is a pair, or a labelled answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tunesmith.recipe import Align
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.head import Head
from tunesmith.training.losses import BatchLoss, Measure
from tunesmith.training.objectives.preference import Pairs, dpo, ipo, kto, kto_kl, orpo, simpo
from tunesmith.training.objectives.summed import Summed
from tunesmith.training.pairs import DESIRABLE, REFERENCE, num_pairs, pair_rows


class PairLoss:
    """A loss over pairs: `formula` of their log-probabilities."""

    may_be_zero = True  # of a pair that is told apart with certainty

    def __init__(self, formula: Callable[[Pairs], Summed]) -> None:
        self._formula = formula

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """Nothing: each pair stands for itself."""

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return num_pairs(samples, indices)

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        log_probs = batch.sum_by_sample(head.log_probs(hidden, batch.targets, 1.0))
        lengths = torch.tensor(batch.num_rows, dtype=torch.float32, device=log_probs.device)
        reference = batch.columns.get(REFERENCE)
        at = pair_rows(batch)
        pairs = Pairs(
            chosen=log_probs[at.chosen],
            rejected=log_probs[at.rejected],
            chosen_lengths=lengths[at.chosen],
            rejected_lengths=lengths[at.rejected],
            reference_chosen=None if reference is None else reference[at.chosen],
            reference_rejected=None if reference is None else reference[at.rejected],
        )
        return batch_loss(self._formula(pairs))


class Kto:
    """KTO over labelled answers. `mismatched`: each prompt with the reply of another row, for the KL term of a step."""

    may_be_zero = True

    def __init__(self, section: Align, mismatched: Samples) -> None:
        self._section, self._mismatched = section, mismatched
        self._kl = torch.zeros(())

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """The KL term of the whole step, so that a micro batch's own mean decides nothing."""
        reference = self._mismatched.columns[REFERENCE][list(indices)]
        log_probs = measure(self._mismatched, indices)
        self._kl = kto_kl(torch.from_numpy(log_probs), torch.from_numpy(reference)).float()

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return len(indices)

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        log_probs = batch.sum_by_sample(head.log_probs(hidden, batch.targets, 1.0))
        summed = kto(
            log_probs,
            batch.columns[REFERENCE],
            batch.columns[DESIRABLE] > 0.5,
            self._kl.to(log_probs.device),
            beta=self._section.beta,
            desirable_weight=self._section.desirable_weight,
            undesirable_weight=self._section.undesirable_weight,
        )
        return batch_loss(summed)


def build_dpo(section: Align) -> PairLoss:
    return PairLoss(lambda pairs: dpo(pairs, beta=section.beta, label_smoothing=section.label_smoothing))


def build_ipo(section: Align) -> PairLoss:
    return PairLoss(lambda pairs: ipo(pairs, beta=section.beta))


def build_orpo(section: Align) -> PairLoss:
    return PairLoss(lambda pairs: orpo(pairs, odds_weight=section.beta))


def build_simpo(section: Align) -> PairLoss:
    return PairLoss(
        lambda pairs: simpo(
            pairs, beta=section.beta, gamma=section.simpo_gamma, label_smoothing=section.label_smoothing
        )
    )


def batch_loss(summed: Summed) -> BatchLoss:
    """An objective's answer as the loop wants it."""
    return summed.loss, {name: float(value) for name, value in summed.sums.items()}
