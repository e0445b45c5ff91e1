"""Policy-gradient losses over sampled answers: the clipped objective of PPO, GRPO and RLOO, the value loss of PPO.

Works on the supervised tokens of a pass laid end to end, without padding: the mask of other implementations is that a
token is not there, or has weight 0. Refuses to know where rewards and advantages come from (advantages.py) and what a token
counts (normalising.py).

Legend: N tokens, S answers in the order of their tokens. Log-probabilities are those of the distribution that tokens were
drawn from: softmax(logits / temperature) over the whole vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch

from tunesmith.errors import TrainingError
from tunesmith.training.objectives.normalising import per_sequence_sum
from tunesmith.training.objectives.summed import Summed, detached

RatioLevel = Literal["token", "sequence_mean", "sequence_sum"]
"""token: each token has its own ratio (PPO, GRPO). sequence_mean: one per answer, the geometric mean over its tokens (GSPO, arXiv
2507.18071, equation 7). sequence_sum: one per answer, the ratio of its probabilities (RLOO, arXiv 2402.14740)."""


def log_ratio(log_probs: torch.Tensor, old: torch.Tensor, lengths: torch.Tensor, level: RatioLevel) -> torch.Tensor:
    """log(pi / pi_old): (N,) for level token, else (S,). log_probs, old (N,); lengths (S,)."""
    difference = log_probs - old
    if level == "token":
        return difference
    summed = per_sequence_sum(difference, lengths)
    return summed / lengths if level == "sequence_mean" else summed


def clipped_loss(
    ratios: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio_cap: float | None,
) -> Summed:
    """Sum of weight * max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(ratios).

    Schulman et al. 2017, arXiv 1707.06347, equation 7. All (N,), or all (S,) for ratios of whole answers. Clip bounds may differ
    (DAPO's "clip higher", arXiv 2503.14476). ratio_cap: for A < 0 the unclipped r is at most this (dual-clip PPO, arXiv
    1912.09729; above 1 + clip_high); None = off. sums: clipped_low and clipped_high (weight of what has no gradient by the clip),
    ratio (weighted), drift (k3 estimate of KL(old || new), weighted).
    """
    r = torch.exp(ratios)
    clipped = r.clamp(1 - clip_low, 1 + clip_high)
    free = r if ratio_cap is None else torch.where(advantages < 0, r.clamp(max=ratio_cap), r)
    losses = torch.maximum(-free * advantages, -clipped * advantages)
    low = (r < 1 - clip_low) & (advantages < 0)
    high = (r > 1 + clip_high) & (advantages > 0)
    drift = torch.expm1(ratios) - ratios
    sums = detached(clipped_low=weights * low, clipped_high=weights * high, ratio=weights * r, drift=weights * drift)
    return Summed((weights * losses).sum(), sums)


def kl_estimate(log_probs: torch.Tensor, reference: torch.Tensor, estimator: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Per-token estimate of KL(pi || pi_ref) in nats from tokens drawn from pi. (N,) like its arguments.

    With d = log_probs - reference (Schulman 2020, "Approximating KL divergence"): k1 = d, unbiased, may be negative; k2 =
    d^2 / 2, biased by little near the reference, and the one whose gradient as a loss is that of the KL; k3 = exp(-d) - 1 + d,
    unbiased and never negative, GRPO's (arXiv 2402.03300, equation 4), whose gradient as a loss is that of KL(pi_ref || pi).
    k1 belongs into the reward, not into the loss: there its expected gradient is zero.
    """
    d = log_probs - reference
    if estimator == "k1":
        return d
    return d**2 / 2 if estimator == "k2" else torch.expm1(-d) + d


def policy_loss(
    log_probs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor,
    *,
    level: RatioLevel,
    clip_low: float,
    clip_high: float,
    ratio_cap: float | None,
    reference: torch.Tensor | None,
    kl_weight: float,
    entropy: torch.Tensor | None,
    entropy_weight: float,
) -> Summed:
    """clipped_loss + kl_weight * k3 - entropy_weight * entropy, each weighted per token and summed.

    log_probs, old, weights (N,), one weight for all tokens of an answer; lengths (S,); advantages (S,) or (N,), per answer
    or per token; levels other than token need one per answer. reference (N,), wanted where kl_weight is not 0; entropy (N,) in
    nats, wanted where entropy_weight is not 0. Before the first update every level has the same gradient: that of its weights.
    """
    ratios = log_ratio(log_probs, old, lengths, level)
    if level == "token":
        each = advantages if len(advantages) == len(log_probs) else advantages.repeat_interleave(lengths)
        result = clipped_loss(ratios, each, weights, clip_low=clip_low, clip_high=clip_high, ratio_cap=ratio_cap)
    else:
        if len(advantages) != len(lengths):
            raise TrainingError(f"{len(advantages)} advantages for {len(lengths)} answers, expected one for each")
        # The gradient of a mean over tokens gives each of them a part, that of a sum gives each of them all.
        shares = per_sequence_sum(weights, lengths)
        if level == "sequence_sum":
            shares = shares / lengths
        result = clipped_loss(ratios, advantages, shares, clip_low=clip_low, clip_high=clip_high, ratio_cap=ratio_cap)
    loss, sums = result
    if kl_weight:
        kl = weights * kl_estimate(log_probs, _wanted(reference, "reference log-probabilities", "kl_weight"), "k3")
        loss = loss + kl_weight * kl.sum()
        sums = {**sums, **detached(kl=kl)}
    if entropy_weight:
        uncertainty = weights * _wanted(entropy, "entropies", "entropy_weight")
        loss = loss - entropy_weight * uncertainty.sum()
        sums = {**sums, **detached(entropy=uncertainty)}
    return Summed(loss, sums)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, weights: torch.Tensor, *, clip: float | None
) -> Summed:
    """Sum of weight * max((v - R)^2, (old + clip(v - old, -c, c) - R)^2) / 2; all (N,).

    The value loss of PPO as it was published in code (Schulman et al. 2017's baselines; Huang et al. 2022, "The 37
    implementation details", detail 9). clip None = plain squares.
    """
    errors = (values - returns) ** 2
    clipped = errors
    if clip is not None:
        clipped = (old + (values - old).clamp(-clip, clip) - returns) ** 2
    losses = torch.maximum(errors, clipped) / 2
    return Summed(
        (weights * losses).sum(), detached(value=weights * values, value_clipped=weights * (clipped > errors))
    )


@torch.no_grad()
def check_on_policy(log_probs: torch.Tensor, sampled: torch.Tensor, *, tolerance: float) -> float:
    """Largest |log ratio| of tokens that the unchanged policy has just drawn, which should be 0. TrainingError above tolerance.

    Asserted before the first update: a ratio that is not 1 there comes from another temperature, a truncated sampler, a shifted
    target or a padding fault, and every later ratio would be wrong with it.
    """
    difference = (log_probs - sampled).abs()
    worst = float(difference.max()) if difference.numel() else 0.0
    if not worst <= tolerance:
        place = int(difference.nan_to_num(nan=torch.inf).argmax())
        raise TrainingError(
            f"the policy gives token {place} of its own answers log-probability {float(log_probs[place]):.4f}, and drew it "
            f"with {float(sampled[place]):.4f}: the importance ratio is not 1 before the first update",
            hint="sample and train with one temperature, without top_p, top_k and min_p, and in one precision",
        )
    return worst


def _wanted(values: torch.Tensor | None, what: str, option: str) -> torch.Tensor:
    if values is None:
        raise TrainingError(f"{option} is not 0, and the {what} are missing")
    return values
