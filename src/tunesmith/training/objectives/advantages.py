"""From rewards to advantages: groups of answers to one prompt (GRPO, RLOO), and a value function (PPO).

A reward that could not be had is NaN here. It is in no mean, and its answer is marked as unknown, so that the loop leaves it
out: an advantage of 0 would still count as an answer. No gradient flows through anything in this module.

Legend: Q prompts, G answers to each; N tokens end to end, S answers in the order of their tokens, T longest answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_EPS = 1e-4
"""Added to the standard deviation before dividing, in units of the reward."""


@dataclass(frozen=True)
class GroupAdvantages:
    """values (Q, G), 0 where not known. known (Q, G) bool: the answer has a reward, and another one of its group has.

    num_unscored: rewards that were NaN. num_level: groups with at least two known answers, all of one reward: they teach
    nothing, and a sampler may draw others in their place (DAPO's dynamic sampling).
    """

    values: torch.Tensor
    known: torch.Tensor
    num_unscored: int
    num_level: int


@torch.no_grad()
def grpo_advantages(rewards: torch.Tensor, *, scale: Literal["group", "batch", "none"]) -> GroupAdvantages:
    """(reward - mean of its group) / (standard deviation + 1e-4). rewards (Q, G), NaN = unscored.

    scale group: the group's deviation (GRPO, arXiv 2402.03300, section 4.1.2); batch: that of all rewards; none: no
    division, so hard and easy prompts do not count more than others (Dr. GRPO, arXiv 2503.20783). Deviations are unbiased (n - 1).
    """
    scored, known, level = _survey(rewards)
    mean = _mean(rewards, scored)
    centred = torch.where(scored, rewards - mean, 0)
    if scale == "group":
        count = scored.sum(1, keepdim=True)
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (deviation + _EPS)
    elif scale == "batch" and int(scored.sum()) > 1:
        centred = centred / (rewards[scored].std() + _EPS)
    return _advantages(centred, scored, known, level)


@torch.no_grad()
def rloo_advantages(rewards: torch.Tensor) -> GroupAdvantages:
    """reward - mean of the other rewards of its group. rewards (Q, G), NaN = unscored.

    Ahmadian et al. 2024, arXiv 2402.14740, equation 8 (Kool et al. 2019). Equal to n / (n - 1) times the distance to the
    group's mean, n its scored answers. A KL penalty belongs into the reward before (equation 2 there).
    """
    scored, known, level = _survey(rewards)
    count = scored.sum(1, keepdim=True)
    centred = torch.where(scored, rewards - _mean(rewards, scored), 0)
    return _advantages(centred * count / (count - 1).clamp(min=1), scored, known, level)


def _survey(rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scored (Q, G), known (Q, G), level (Q,))."""
    scored = ~rewards.isnan()
    several = scored.sum(1, keepdim=True) >= 2
    lowest = torch.where(scored, rewards, torch.inf).amin(1)
    highest = torch.where(scored, rewards, -torch.inf).amax(1)
    return scored, scored & several, several[:, 0] & (lowest == highest)


def _mean(rewards: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    total = torch.where(scored, rewards, 0).sum(1, keepdim=True)
    return total / scored.sum(1, keepdim=True).clamp(min=1)


def _advantages(
    values: torch.Tensor, scored: torch.Tensor, known: torch.Tensor, level: torch.Tensor
) -> GroupAdvantages:
    # A mean of equal numbers may differ from them by a rounding, which a division by 1e-4 would make large.
    values = torch.where(known & ~level[:, None], values, 0)
    return GroupAdvantages(values, known, int((~scored).sum()), int(level.sum()))


@torch.no_grad()
def token_rewards(
    scores: torch.Tensor, log_probs: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, *, kl_weight: float
) -> torch.Tensor:
    """(N,) -kl_weight * (log_probs - reference) at every token, and the answer's score on top at its last one.

    Ouyang et al. 2022, arXiv 2203.02155, equation 2. scores (S,); log_probs, reference (N,); lengths (S,), each at least 1.
    """
    rewards = -kl_weight * (log_probs - reference)
    return rewards.index_add(0, lengths.cumsum(0) - 1, scores.to(rewards.dtype))


@torch.no_grad()
def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    gamma: float,
    lam: float,
    last_values: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16): (advantages, returns), both (N,).

    rewards, values (N,): of each token, values before it is drawn; lengths (S,), each at least 1. last_values (S,): what is
    still to come after the last token of an answer that was cut off; None = 0 for all, as for answers that ended. returns = advantages
    + values, what the value function learns.
    """
    num, longest = len(lengths), int(lengths.max())
    places = torch.arange(longest, device=lengths.device)
    present = places < lengths[:, None]  # (S, T), row by row the tokens in their order
    table = values.new_zeros(2, num, longest)
    table[0][present], table[1][present] = rewards.to(values.dtype), values
    upcoming = values.new_zeros(num) if last_values is None else last_values.to(values.dtype)
    running = values.new_zeros(num)
    found = values.new_zeros(num, longest)
    for t in range(longest - 1, -1, -1):
        here = present[:, t]
        delta = table[0, :, t] + gamma * upcoming - table[1, :, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        upcoming = torch.where(here, table[1, :, t], upcoming)
        found[:, t] = running
    advantages = found[present]
    return advantages, advantages + values


@torch.no_grad()
def whiten(advantages: torch.Tensor) -> torch.Tensor:
    """(x - mean) / (standard deviation + 1e-4) over all tokens of a step, as PPO implementations do before the first update.

    Of the whole step at once: a micro batch's own mean would make the result depend on how the step was cut.
    """
    if advantages.numel() < 2:
        return torch.zeros_like(advantages)
    return (advantages - advantages.mean()) / (advantages.std() + _EPS)
