"""Losses over pairs of answers (DPO, IPO, ORPO, SimPO, reward models) and over labelled answers (KTO).

Each takes log-probabilities of whole answers, summed over their tokens, and returns sums over the pairs. Refuses to know
how those log-probabilities were computed.

Legend: P pairs, K labelled answers. log p = sum over the answer's tokens of log pi(token | everything before it), in
nats; the end-of-turn token is one of them. Natural logarithms throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tunesmith.errors import TrainingError
from tunesmith.training.objectives.summed import Summed, detached

_LEAST_GAP = 1e-6
"""ORPO: a mean log-probability nearer to 0 than this counts as this near. At 0 itself the odds p / (1 - p) are infinite and
the gradient is not a number; 1e-6 is a probability of 0.999999 for every token of the answer."""


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of two answers to one prompt, the better one first.

    The reference's are constants: of the model before training, or None for losses that compare with no reference.
    """

    chosen: torch.Tensor  # (P,)
    rejected: torch.Tensor  # (P,)
    chosen_lengths: torch.Tensor  # (P,) tokens of the answer, at least 1
    rejected_lengths: torch.Tensor  # (P,)
    reference_chosen: torch.Tensor | None = None  # (P,)
    reference_rejected: torch.Tensor | None = None  # (P,)

    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """((P,), (P,)): log(pi / pi_ref) of the chosen and of the rejected answers. TrainingError without a reference."""
        if self.reference_chosen is None or self.reference_rejected is None:
            raise TrainingError(
                "this loss compares with a reference model, and its log-probabilities are missing",
                hint="compute them before the first step, or take a loss without a reference: orpo, simpo",
            )
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


def dpo(pairs: Pairs, *, beta: float, label_smoothing: float) -> Summed:
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h), h = beta (log ratio of chosen - log ratio of rejected).

    Rafailov et al. 2023, arXiv 2305.18290, equation 7. label_smoothing e in [0, 0.5): the share of pairs whose order is
    thought wrong (conservative DPO, Mitchell 2023); 0 is the paper's loss.
    """
    chosen, rejected = pairs.log_ratios()
    logits = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-logits)
    return _with_log_ratios(_summed(losses, beta * chosen, beta * rejected), pairs)


def ipo(pairs: Pairs, *, beta: float) -> Summed:
    """(mean log ratio of chosen - mean log ratio of rejected - 1 / (2 beta))^2.

    Azar et al. 2023, arXiv 2310.12036, equation 17, beta being its tau. Means over the tokens of each answer, as in the authors'
    own runs and in TRL; the paper prints sums, whose square grows with the answers' lengths.
    """
    chosen, rejected = pairs.log_ratios()
    chosen, rejected = chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return _with_log_ratios(_summed(losses, beta * chosen, beta * rejected), pairs)


def orpo(pairs: Pairs, *, odds_weight: float) -> Summed:
    """-log p(chosen) / length - odds_weight * log sigmoid(log odds of chosen - log odds of rejected).

    Hong et al. 2024, arXiv 2403.07691, equations 4 to 7: odds = p / (1 - p) with p the geometric mean of the answer's
    token probabilities. The first term is the cross-entropy of the chosen answer, a mean over its tokens. No reference.
    """
    chosen, rejected = pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    odds_losses = -F.logsigmoid(log_odds)
    result = _summed(odds_weight * odds_losses - chosen, odds_weight * chosen, odds_weight * rejected)
    result.sums.update(detached(nll=-chosen, log_odds_ratio=log_odds))
    return result


def simpo(pairs: Pairs, *, beta: float, gamma: float, label_smoothing: float) -> Summed:
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h), h = beta (mean log p of chosen - mean log p of rejected) - gamma.

    Meng et al. 2024, arXiv 2405.14734, equation 6: gamma is the margin itself, not its ratio to beta. No reference.
    """
    chosen = beta * pairs.chosen / pairs.chosen_lengths
    rejected = beta * pairs.rejected / pairs.rejected_lengths
    logits = chosen - rejected - gamma
    losses = -(1 - label_smoothing) * F.logsigmoid(logits)
    if label_smoothing:
        losses = losses - label_smoothing * F.logsigmoid(-logits)
    return _summed(losses, chosen, rejected)


def kto(
    log_probs: torch.Tensor,
    reference: torch.Tensor,
    desirable: torch.Tensor,
    kl: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Summed:
    """Sum over K labelled answers: w_d (1 - sigmoid(beta (r - z))) for good, w_u (1 - sigmoid(beta (z - r))) for bad ones.

    Ethayarajh et al. 2024, arXiv 2402.01306, equation 7; r = log_probs - reference, (K,); desirable (K,) bool; z = kl, a
    scalar from `kto_kl` over the whole step, through which no gradient flows. With unequal numbers of good and bad answers
    the paper asks for w_d * number good / (w_u * number bad) between 1 and 4/3 (equation 8).
    """
    ratios, kl = log_probs - reference, kl.detach()
    good = 1 - torch.sigmoid(beta * (ratios - kl))
    bad = 1 - torch.sigmoid(beta * (kl - ratios))
    losses = torch.where(desirable, desirable_weight * good, undesirable_weight * bad)
    rewards = beta * ratios
    right = torch.where(desirable, ratios > kl, ratios < kl)
    nothing = torch.zeros_like(rewards)
    return Summed(
        losses.sum(),
        detached(
            accuracy=right,
            desirable=desirable,
            desirable_reward=torch.where(desirable, rewards, nothing),
            undesirable_reward=torch.where(desirable, nothing, rewards),
        ),
    )


@torch.no_grad()
def kto_kl(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """max(0, mean(log_probs - reference)), a scalar: how far the policy is from the reference, KL(pi || pi_ref) in nats.

    (K,) log-probabilities of mismatched pairs: each prompt with the answer of another row (section 4.1 of the paper).
    Of all rows of an optimiser step at once, or the mean of a micro batch would decide what a row counts.
    """
    if not log_probs.numel():
        raise TrainingError(
            "the KL term of KTO needs mismatched pairs, and there is none",
            hint="take at least two rows into a step",
        )
    return (log_probs - reference).mean().clamp(min=0)


def bradley_terry(
    chosen: torch.Tensor, rejected: torch.Tensor, *, margin: torch.Tensor | None, centre_weight: float
) -> Summed:
    """-log sigmoid(chosen - rejected - margin) + centre_weight (chosen + rejected)^2, summed over P pairs of scores.

    Ouyang et al. 2022, arXiv 2203.02155, equation 1 (Bradley and Terry 1952). margin (P,): how much better people found
    the chosen answer (Touvron et al. 2023, Llama 2, equation 2); None = 0. centre_weight keeps scores around 0, which
    the first term leaves open (Eisenstein et al. 2023, arXiv 2312.09244); 0 = off.
    """
    differences = chosen - rejected
    losses = -F.logsigmoid(differences if margin is None else differences - margin)
    if centre_weight:
        losses = losses + centre_weight * (chosen + rejected) ** 2
    return _summed(losses, chosen, rejected)


def _summed(losses: torch.Tensor, chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor) -> Summed:
    """accuracy: pairs whose chosen answer has the higher reward. A tie is no success: before the first step all are."""
    sums = detached(
        accuracy=chosen_rewards > rejected_rewards,
        margin=chosen_rewards - rejected_rewards,
        chosen_reward=chosen_rewards,
        rejected_reward=rejected_rewards,
    )
    return Summed(losses.sum(), sums)


def _with_log_ratios(summed: Summed, pairs: Pairs) -> Summed:
    """And chosen_log_ratio, rejected_log_ratio: log(pi / pi_ref) of whole answers, in nats whatever beta is."""
    chosen, rejected = pairs.log_ratios()
    summed.sums.update(detached(chosen_log_ratio=chosen, rejected_log_ratio=rejected))
    return summed


def _log_odds(log_prob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p < 0."""
    log_prob = log_prob.clamp(max=-_LEAST_GAP)
    return log_prob - _log_of_rest(log_prob)


def _log_of_rest(log_prob: torch.Tensor) -> torch.Tensor:
    """log(1 - p) of log p < 0, exact at both ends (Maechler 2012, "Accurately computing log(1 - exp(-|a|))")."""
    near_one = log_prob > -math.log(2)
    # each branch sees only what it is good at: an infinite gradient times 0 is not a number
    high = torch.where(near_one, log_prob, torch.full_like(log_prob, -1.0))
    low = torch.where(near_one, torch.full_like(log_prob, -1.0), log_prob)
    return torch.where(near_one, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))
