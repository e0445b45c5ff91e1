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
        self._generator = generator_for(sampling.rng_seed, prompt)

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


def generator_for(rng_seed: int | None, prompt: Sequence[int], *numbers: int) -> torch.Generator:
    """Random numbers of one request, from its seed, its prompt and further numbers that tell it apart; seed None = any."""
    generator = torch.Generator()
    if rng_seed is None:
        generator.seed()
    else:
        # The prompt is part of the seed: different prompts of one evaluation must not share their luck.
        generator.manual_seed(int(digest_json([rng_seed, list(prompt), *numbers])[:15], 16))
    return generator


def draw_tokens(
    logits: torch.Tensor, generators: Sequence[torch.Generator], temperature: float
) -> tuple[list[int], list[float]]:
    """For logits (R, V): a token of each row from softmax(logits / temperature), and its log-probability in nats.

    One uniform number of the row's own generator per token, turned into a token by the inverse of the distribution
    function: all rows at once, and no row's token depends on another row.
    """
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)  # (R, V)
    # fp64: in fp32 the sum's rounding at the end of a large vocabulary is a token's whole probability
    reached = log_probs.exp().cumsum(-1, dtype=torch.float64)
    luck = torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in generators]).to(logits.device)
    total = reached[:, -1]
    wanted = torch.minimum(luck * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(reached, wanted[:, None], right=True)  # the first token reached only beyond `wanted`
    return tokens[:, 0].tolist(), log_probs.gather(1, tokens)[:, 0].tolist()


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
