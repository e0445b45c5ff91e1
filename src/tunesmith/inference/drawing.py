"""From logits to the next token of one request. Owns sampling and its randomness; knows no model and no batch.

A request's random numbers come from its own seed and its own prompt, so its answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from tunesmith.hashing import digest_json
from tunesmith.types import SamplingParams


class Draw:
    """Draws the tokens of one request, one after the other."""

    def __init__(self, sampling: SamplingParams, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if sampling.rng_seed is None:
            self._generator.seed()
        else:
            # The prompt is part of the seed: different prompts of one evaluation must not share their luck.
            self._generator.manual_seed(int(digest_json([sampling.rng_seed, list(prompt)])[:15], 16))

    def next(self, logits: torch.Tensor) -> int:
        """The next token for fp32 logits (V,). Temperature 0 takes the most likely one, penalties counted in."""
        sampling = self._sampling
        logits = self._with_penalties(logits)
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            chances = truncate(torch.softmax(logits.cpu() / sampling.temperature, dim=-1), sampling)
            token = int(torch.multinomial(chances, 1, generator=self._generator))
        self._counts[token] += 1
        return token

    def _with_penalties(self, logits: torch.Tensor) -> torch.Tensor:
        sampling = self._sampling
        if not self._counts or not (sampling.frequency_penalty or sampling.presence_penalty):
            return logits
        ids = torch.tensor(list(self._counts), device=logits.device)
        counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
        return logits.index_add(0, ids, -(counts * sampling.frequency_penalty + sampling.presence_penalty))


def truncate(chances: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Probabilities (V,) with everything outside top_k, top_p and min_p set to 0; not normalised again.

    All three look at the distribution after the temperature. top_p keeps the smallest set of the most likely tokens
    that reaches it (Holtzman et al. 2020); min_p keeps tokens of at least min_p times the highest probability.
    """
    kept = chances
    if sampling.top_k and sampling.top_k < len(chances):
        smallest = torch.topk(chances, sampling.top_k).values[-1]
        kept = torch.where(chances < smallest, 0.0, kept)
    if sampling.top_p < 1:
        ordered, ids = torch.sort(chances, descending=True, stable=True)
        before = torch.cumsum(ordered, 0) - ordered
        kept = kept.clone().index_fill_(0, ids[before >= sampling.top_p], 0.0)
    if sampling.min_p > 0:
        kept = torch.where(chances < sampling.min_p * chances.max(), 0.0, kept)
    return kept
