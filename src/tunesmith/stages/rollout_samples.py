"""Sampled answers with their rewards as what a policy objective learns from: tokens, and what each was drawn with and earned.

Owns which answers are computed, what the others count, and the columns of the samples. Refuses to know how answers are
sampled, who rewards them, and where they are written down: rollouts.py does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tunesmith.inference.rollouts import Rollout
from tunesmith.model.value_head import ValueHead
from tunesmith.recipe.align import Align
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.forward import output_head
from tunesmith.training.objectives.advantages import (
    GroupAdvantages,
    gae,
    grpo_advantages,
    rloo_advantages,
    token_rewards,
    whiten,
)
from tunesmith.training.objectives.policy import check_on_policy
from tunesmith.training.on_policy import measure_tokens, swapped
from tunesmith.training.policy_losses import (
    ADVANTAGE,
    LEVEL_ANSWERS,
    LEVEL_TOKENS,
    OLD,
    REFERENCE,
    RETURN,
    SAMPLER_TOLERANCE,
    VALUE,
    is_updated_once,
)


@dataclass(frozen=True)
class AnswerGroup:
    """The answers to one prompt."""

    row: str  # id of the conversation
    prompt_ids: tuple[int, ...]
    answers: Sequence[Rollout]


class RolloutSamples:
    """Samples of one rollout after the other. The reference, where `kl_weight` asks for one, is the model as it is when this
    is made."""

    def __init__(self, model: PreTrainedModel, section: Align, value_head: ValueHead | None) -> None:
        self._model, self._section, self._value_head = model, section, value_head
        self._start: Mapping[str, torch.Tensor] | None = None
        if section.kl_weight:
            self._start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    def advantages(self, rewards: torch.Tensor) -> GroupAdvantages:
        """Of rewards (Q, G), NaN = unscored. PPO has none before its value function has spoken: there they are the rewards."""
        if self._section.loss == "grpo":
            return grpo_advantages(rewards, scale=self._section.advantage_scale)
        found = rloo_advantages(rewards)
        if self._section.loss == "rloo":
            return found
        return replace(found, values=torch.where(rewards.isnan(), 0, rewards), known=~rewards.isnan())  # PPO: no group

    def build(self, groups: Sequence[AnswerGroup], rewards: torch.Tensor, advantages: GroupAdvantages) -> Samples:
        """Answers that have a score; at least one is known. Groups that teach nothing count in the divisor and are not
        computed."""
        section, keep = self._section, advantages.known
        if (
            section.loss != "ppo" and not section.kl_weight and not section.entropy_weight
        ):  # else there is more to learn
            teaches = keep & (advantages.values != 0).any(1, keepdim=True)
            if not bool(teaches.any()):  # a step has at least one group
                teaches[int(keep.any(1).nonzero()[0])] = keep[int(keep.any(1).nonzero()[0])]
            beside, keep = keep & ~teaches, teaches
        else:
            beside = torch.zeros_like(keep)
        samples = self._computed(groups, advantages, keep)
        samples = _counting(samples, groups, beside)
        if self._value_head is not None:
            return self._with_values(samples, rewards[keep], self._value_head)
        if section.loss == "rloo" and self._start is not None:
            return self._with_penalty(samples, rewards, keep)
        return samples

    def _computed(self, groups: Sequence[AnswerGroup], advantages: GroupAdvantages, keep: torch.Tensor) -> Samples:
        """The answers of `keep` with what they were drawn with, and what the reference says of them."""
        ids: list[int] = []
        mask: list[int] = []
        old: list[float] = []
        lengths: list[int] = []
        names: list[str] = []
        for group, kept in zip(groups, keep.tolist(), strict=True):
            for number, answer in enumerate(group.answers):
                if not kept[number]:
                    continue
                ids += [*group.prompt_ids, *answer.token_ids]
                mask += [0] * len(group.prompt_ids) + [1] * len(answer.token_ids)
                old += [0.0] * len(group.prompt_ids) + list(answer.log_probs)
                lengths.append(len(group.prompt_ids) + len(answer.token_ids))
                names.append(f"{group.row}, answer {number}")
        sizes = keep.sum(1)
        samples = Samples(
            input_ids=np.array(ids, dtype=np.int32),
            loss_mask=np.array(mask, dtype=np.uint8),
            lengths=np.array(lengths, dtype=np.int64),
            ids=tuple(names),
            group_sizes=sizes[sizes > 0].numpy().astype(np.int64),
            columns={ADVANTAGE: advantages.values[keep].double().numpy()},
            token_columns={OLD: np.array(old)},
        )
        if self._model.dtype != torch.float32 and self._old_is_read:
            samples = self._with_trainers_arithmetic(samples)
        if self._start is None:
            return samples
        with swapped(self._model, self._start):
            reference = measure_tokens(self._model, samples, self._log_probs)
        return replace(samples, token_columns={**samples.token_columns, REFERENCE: reference})

    @property
    def _old_is_read(self) -> bool:
        """Whether the column OLD is a part of what is learnt, or only what the sampler is checked by: that is so where the one
        step of a rollout has its own log-probabilities, and no divergence is a part of the reward."""
        section = self._section
        return not is_updated_once(section) or (section.kl_weight > 0 and section.loss in ("rloo", "ppo"))

    def _with_trainers_arithmetic(self, samples: Samples) -> Samples:
        """In bf16 sampling and training round differently; the ratio compares two of training's own log-probabilities."""
        sampled, measured = samples.token_columns[OLD], measure_tokens(self._model, samples, self._log_probs)
        place = np.flatnonzero(samples.loss_mask)
        tolerance = SAMPLER_TOLERANCE[self._model.dtype]
        check_on_policy(torch.from_numpy(measured[place]), torch.from_numpy(sampled[place]), tolerance=tolerance)
        return replace(samples, token_columns={**samples.token_columns, OLD: measured})

    def _log_probs(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return output_head(self._model).detach().log_probs(hidden, batch.targets, self._section.temperature)

    def _with_penalty(self, samples: Samples, rewards: torch.Tensor, keep: torch.Tensor) -> Samples:
        """RLOO: the divergence of a whole answer is a part of its reward (arXiv 2402.14740, equation 2)."""
        place = np.flatnonzero(samples.loss_mask)
        owner = np.repeat(np.arange(len(samples.lengths)), samples.num_targets)
        apart = (samples.token_columns[OLD] - samples.token_columns[REFERENCE])[place]
        penalised = torch.full(keep.shape, math.nan, dtype=torch.float64)
        penalised[keep] = rewards[keep] - self._section.kl_weight * torch.from_numpy(np.bincount(owner, apart))
        advantages = rloo_advantages(penalised).values[keep].numpy()
        kept = {name: values for name, values in samples.token_columns.items() if name != REFERENCE}  # in the rewards
        return replace(samples, columns={**samples.columns, ADVANTAGE: advantages}, token_columns=kept)

    def _with_values(self, samples: Samples, scores: torch.Tensor, head: ValueHead) -> Samples:
        """PPO: what the value function says before each token, and the advantages and returns that follow."""
        values = measure_tokens(self._model, samples, lambda hidden, _: head(hidden))
        place = np.flatnonzero(samples.loss_mask)  # answers only, each in one piece
        lengths = torch.from_numpy(samples.num_targets)
        old = torch.from_numpy(samples.token_columns[OLD][place])
        reference = torch.from_numpy(samples.token_columns.get(REFERENCE, samples.token_columns[OLD])[place])
        rewards = token_rewards(scores.double(), old, reference, lengths, kl_weight=self._section.kl_weight)
        said = torch.from_numpy(values[place])
        advantages, returns = gae(
            rewards, said, lengths, gamma=self._section.gamma, lam=self._section.gae_lambda, last_values=None
        )
        columns: dict[str, Any] = {}
        for name, found in ((ADVANTAGE, whiten(advantages)), (RETURN, returns), (VALUE, said)):
            columns[name] = np.zeros(len(samples.input_ids))
            columns[name][place] = found.numpy()
        kept = {name: values for name, values in samples.token_columns.items() if name != REFERENCE}  # in the rewards
        others = {name: values for name, values in samples.columns.items() if name != ADVANTAGE}  # one for each token
        return replace(samples, columns=others, token_columns={**kept, **columns})


def _counting(samples: Samples, groups: Sequence[AnswerGroup], beside: torch.Tensor) -> Samples:
    """What is left out of the computation counts all the same, in equal parts with every sample."""
    lengths = torch.tensor([[len(answer.token_ids) for answer in group.answers] for group in groups])
    num = len(samples.lengths)
    columns = {
        LEVEL_ANSWERS: np.full(num, float(beside.sum()) / num),
        LEVEL_TOKENS: np.full(num, float(lengths[beside].sum()) / num),
    }
    return replace(samples, columns={**samples.columns, **columns})
