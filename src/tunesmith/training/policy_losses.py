"""Policy objectives as losses of the loop: PPO, GRPO and RLOO over answers that the model has just sampled.

The formulas are in objectives/policy.py. What an answer's tokens were drawn with (OLD), and what they earned (ADVANTAGE),
are columns of the samples; so is what PPO's value function said and should say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.model.value_head import ValueHead
from tunesmith.recipe.align import Align
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.head import Head
from tunesmith.training.losses import BatchLoss, Measure
from tunesmith.training.objectives.normalising import Normalisation, divisor, token_weights
from tunesmith.training.objectives.policy import check_on_policy, policy_loss, value_loss
from tunesmith.training.preference_losses import batch_loss

OLD, ADVANTAGE, REFERENCE = "old", "advantage", "reference"
VALUE, RETURN = "value", "return"
LEVEL_ANSWERS, LEVEL_TOKENS = "level_answers", "level_tokens"
"""What counts in the divisor beside a sample: parts of groups whose rewards are level, which are not computed, because their
advantages are 0. GRPO's means are over every answer (arXiv 2402.03300, equation 3), as in TRL; only a sampler that draws
others in their place (DAPO) may forget them."""

_RATIO_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 1.0, torch.float16: 0.3}
"""Nats between two forward passes over the same tokens in other packs: thirty blocks round, most where a token was
unlikely."""

SAMPLER_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 2.0, torch.float16: 2.0}
"""Nats by which a token's log-probability may differ between sampling through a cache and training over whole packs: in bf16
unlikely tokens drift most. A wrong temperature or a shifted target is many nats off on some token."""


def is_updated_once(section: Align) -> bool:
    """Whether each rollout is learnt from in one step: then the policy that drew it is the policy of that step, the ratio is 1,
    and what the step computes anyway is also the old log-probability."""
    return section.rollout_epochs == 1


class PolicyLoss:
    """The clipped objective; with a value head the value loss beside it (PPO)."""

    may_be_zero = True  # advantages sum to nothing in a level group

    def __init__(self, section: Align, value_head: ValueHead | None = None) -> None:
        self._section = section
        self._value_head = value_head
        self._level: Any = "sequence_sum" if section.loss == "rloo" else section.ratio_level
        auto: Normalisation = "answer" if section.loss == "rloo" else "token"
        self._normalisation: Normalisation = auto if section.normalisation == "auto" else section.normalisation
        self._share_computed = 1.0  # of a step's units
        self._fresh = True  # no update yet: the ratio must be 1

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        """Measures are means over what is computed; the loss is one over all that counts."""
        self._share_computed = self._units(samples, indices, 0.0, 0.0) / self.units(samples, indices)

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        """Answers or tokens of the step, level groups too."""
        beside = [
            float(samples.columns[name][list(indices)].sum()) if name in samples.columns else 0.0
            for name in (LEVEL_ANSWERS, LEVEL_TOKENS)
        ]
        return self._units(samples, indices, *beside)

    def _units(self, samples: Samples, indices: Sequence[int], answers: float, tokens: float) -> float:
        num_tokens = int(samples.num_targets[list(indices)].sum()) + tokens
        return divisor(self._normalisation, num_sequences=len(indices) + answers, num_tokens=num_tokens)

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        section = self._section
        log_probs = head.log_probs(hidden, batch.targets, section.temperature)
        old = self._old(log_probs.detach(), batch.token_columns[OLD], hidden.dtype)
        lengths = torch.tensor(batch.num_rows, device=hidden.device)
        weights = token_weights(lengths, self._normalisation, max_tokens=section.max_tokens)
        per_token = ADVANTAGE in batch.token_columns
        summed = policy_loss(
            log_probs,
            old,
            batch.token_columns[ADVANTAGE] if per_token else batch.columns[ADVANTAGE],
            lengths,
            weights,
            level=self._level,
            clip_low=section.clip_low,
            clip_high=section.clip_high,
            ratio_cap=section.ratio_cap,
            reference=batch.token_columns.get(REFERENCE),
            kl_weight=section.kl_weight if REFERENCE in batch.token_columns else 0.0,
            entropy=head.entropies(hidden, section.temperature) if section.entropy_weight else None,
            entropy_weight=section.entropy_weight,
        )
        loss, measured = batch_loss(summed)
        if self._value_head is not None:
            values = self._value_head(hidden)
            columns = batch.token_columns
            of_values = value_loss(values, columns[VALUE], columns[RETURN], weights, clip=section.clip_high)
            value, more = batch_loss(of_values)
            loss = loss + section.value_weight * value
            measured = {**measured, **more, "value_loss": float(value.detach())}
        if is_updated_once(section):
            gap = weights * (log_probs.detach() - batch.token_columns[OLD]).abs()
            measured = {**measured, "sampler_gap": float(gap.sum())}
        return loss, {name: value / self._share_computed for name, value in measured.items()}

    def _old(self, log_probs: torch.Tensor, column: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """log pi_old (N,). TrainingError where no weight has changed since, and the ratio is not 1."""
        if is_updated_once(self._section):
            check_on_policy(log_probs, column, tolerance=SAMPLER_TOLERANCE.get(dtype, 2.0))
            return log_probs
        if self._fresh:
            check_on_policy(log_probs, column, tolerance=_RATIO_TOLERANCE.get(dtype, 1.0))
            self._fresh = False
        return column
