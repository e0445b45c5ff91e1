"""What a token of an answer counts in a policy loss: the one choice that separates GRPO, its successors and PPO.

Weights go into the summed loss, and the loop divides by one number of the whole step, so that accumulation, packing and
ranks change nothing. Knows no formula of a loss.

Legend: N supervised tokens of a pass, end to end; S answers, in the order of their tokens.
"""

from __future__ import annotations

from typing import Literal

import torch

Normalisation = Literal["sequence", "token", "constant", "answer"]
"""sequence: each answer counts 1, its tokens share it (GRPO, arXiv 2402.03300, equation 3). token: each token counts 1 (DAPO,
arXiv 2503.14476, equation 8; PPO as usually run). constant: each token counts 1 / the longest answer allowed, so neither an answer's length
nor the others' changes what it counts (Dr. GRPO, arXiv 2503.20783). answer: a mean over answers, each with the sum of its
tokens' log-probabilities, which is the log-probability of the whole (RLOO, arXiv 2402.14740, equation 8)."""


def token_weights(lengths: torch.Tensor, normalisation: Normalisation, *, max_tokens: int) -> torch.Tensor:
    """(N,) fp32 weight of every token. lengths (S,), each at least 1; max_tokens: tokens an answer may have at most."""
    if normalisation == "sequence":
        each = 1 / lengths.float()
    elif normalisation == "constant":
        each = torch.full(lengths.shape, 1 / max_tokens, device=lengths.device)
    else:
        each = torch.ones(lengths.shape, device=lengths.device)
    return each.repeat_interleave(lengths)


def divisor(normalisation: Normalisation, *, num_sequences: float, num_tokens: float) -> float:
    """What the summed loss of a whole step is divided by: its tokens for "token", else its answers."""
    return num_tokens if normalisation == "token" else num_sequences


def per_sequence_sum(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(N,) values of tokens summed by answer, (S,). An answer without tokens gives 0."""
    owner = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, owner, values)
