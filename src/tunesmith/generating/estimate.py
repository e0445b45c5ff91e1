"""What generation will cost, before it begins: arithmetic on the section alone, for `tunesmith plan`."""

from __future__ import annotations

import math
from typing import TypedDict

from tunesmith.generating.distill import MAX_PAIRS_SHOWN, MAX_SYSTEM_PROMPT_TOKENS
from tunesmith.generating.prompt_files import load_prompt
from tunesmith.protocols import Price
from tunesmith.recipe import Generate

ACCEPTED_SHARE = 0.7
"""Share of asked rows that are kept, assumed. Similar runs of large teachers keep 60 to 90 %; small ones far less."""

MAX_REQUESTS_FACTOR = 20
"""`generate.max_requests: null` allows this many times the requests of a run in which every row is kept."""

_BYTES_PER_TOKEN = 3.5  # English prose and JSON in the byte-level vocabularies of 2023 to 2025
_ROW_WITHOUT_SEEDS = 120  # tokens of a pair where there is no seed to measure
_ROW_FRAME = 12  # tokens of {"input": ..., "output": ...}


class Estimate(TypedDict):
    """Totals of a whole run. usd: expected cost, at most the budget."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: float


def max_requests(section: Generate) -> int:
    """The hard stop on requests, with its null replaced."""
    if section.max_requests is not None:
        return section.max_requests
    return (
        MAX_REQUESTS_FACTOR * math.ceil(section.num_rows / section.rows_per_request) + 1
    )  # 1: distill's system prompt


def estimate(section: Generate, num_seeds: int, mean_seed_tokens: float, price: Price) -> Estimate:
    """Expected requests, tokens and US dollars.

    num_seeds: training rows at hand; mean_seed_tokens: tokens of one of them, message and reply together (0 = unknown).
    """
    row = (mean_seed_tokens or _ROW_WITHOUT_SEEDS) + _ROW_FRAME
    requests = math.ceil(section.num_rows / (section.rows_per_request * ACCEPTED_SHARE))
    shown = MAX_PAIRS_SHOWN if section.generator == "distill" else min(section.num_seeds_shown, num_seeds)
    prompt = load_prompt(section.generator, section.language)
    frame = sum(len(prompt.sections[name].encode()) for name in ("system", "user")) / _BYTES_PER_TOKEN
    per_answer = min(section.max_tokens, section.rows_per_request * row)
    extra = 1 if section.generator == "distill" else 0
    requests = min(requests + extra, max_requests(section))
    prompt_tokens = round(requests * (frame + shown * row))
    completion_tokens = round((requests - extra) * per_answer + extra * MAX_SYSTEM_PROMPT_TOKENS)
    usd = price.cost(prompt_tokens, completion_tokens)
    if section.budget_usd is not None:
        usd = min(usd, section.budget_usd)
    return Estimate(requests=requests, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, usd=usd)
