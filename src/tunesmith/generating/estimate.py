"""What generation will cost, before it begins: arithmetic on the section alone, for `tunesmith plan`."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def _with_lists(section: Generate, calls: int) -> tuple[int, int]:
    """Talks of `calls` requests that share the lists of a tree: one of subtopics, one of questions."""
    if section.dialogue_topics == "seeds":
        return calls, 1
    return 2 + section.rows_per_request * calls, section.rows_per_request


_CALLS: dict[str, Callable[[Generate], tuple[int, int]]] = {
    "self_instruct": lambda o: (1, o.rows_per_request),
    "distill": lambda o: (1, o.rows_per_request),
    "personas": lambda o: (1, o.rows_per_request),
    "three_step": lambda o: (1 + 2 * o.rows_per_request, o.rows_per_request),
    "label_first": lambda o: (o.rows_per_request, o.rows_per_request),
    "questions": lambda o: (1, o.rows_per_request),
    "responses": lambda o: (1, 1),
    "question_response": lambda o: (1 + o.rows_per_request, o.rows_per_request),
    "dialogue": lambda o: _with_lists(o, 1 if o.dialogue_form in ("transcript", "generated_chat") else 2 * o.max_rounds),
    "maths": lambda o: (
        1 + (o.num_votes * o.rows_per_request if o.answer_check == "majority" else 0), o.rows_per_request
    ),
    "evolve": lambda o: (3, 1),
    "magpie": lambda o: (2 * o.turns, 1),
    "back_translate": lambda o: (2, 1),
    "translate": lambda o: (2, 1),
    "documents": lambda o: (1 + o.rows_per_request, o.rows_per_request),
}  # fmt: skip
"""(requests, rows) of one item, where all is kept. translate: a row of two turns; back_translate: its first round."""

_PROMPT_OF = {"questions": "question_response", "responses": "question_response"}
_TEXTS_SHOWN = {
    "back_translate": 1.0,
    "translate": 1.0,
    "evolve": 1.0,
    "dialogue": 1.0,
}  # rows' worth of text a request


def max_requests(section: Generate) -> int:
    """The hard stop on requests, with its null replaced."""
    if section.max_requests is not None:
        return section.max_requests
    calls, rows = _CALLS[section.generator](section)
    return MAX_REQUESTS_FACTOR * calls * math.ceil(section.num_rows / rows) + 1  # 1: distill's system prompt


def estimate(section: Generate, num_seeds: int, mean_seed_tokens: float, price: Price) -> Estimate:
    """Expected requests, tokens and US dollars.

    num_seeds: training rows at hand; mean_seed_tokens: tokens of one of them, message and reply together (0 = unknown).
    """
    row = (mean_seed_tokens or _ROW_WITHOUT_SEEDS) + _ROW_FRAME
    calls, rows = _CALLS[section.generator](section)
    requests = math.ceil(section.num_rows * calls / (rows * ACCEPTED_SHARE))
    extra = 1 if section.generator == "distill" else 0
    requests = min(requests + extra, max_requests(section))
    per_answer = min(section.max_tokens, rows * row if calls == 1 else row)
    prompt_tokens = round(requests * (_frame_tokens(section) + _shown_tokens(section, num_seeds, row)))
    completion_tokens = round((requests - extra) * per_answer + extra * MAX_SYSTEM_PROMPT_TOKENS)
    usd = price.cost(prompt_tokens, completion_tokens)
    if section.budget_usd is not None:
        usd = min(usd, section.budget_usd)
    return Estimate(requests=requests, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, usd=usd)


def _frame_tokens(section: Generate) -> float:
    """Tokens of a prompt's own words: the sections of the one-call generators, the mean of all sections elsewhere."""
    if section.generator == "magpie":
        return 0.0
    sections = load_prompt(_PROMPT_OF.get(section.generator, section.generator), section.language).sections
    if "user" in sections:
        return sum(len(sections[name].encode()) for name in ("system", "user")) / _BYTES_PER_TOKEN
    texts = [text for name, text in sections.items() if name not in ("topics", "grades")]
    return len(sections["system"].encode()) / _BYTES_PER_TOKEN + sum(len(text.encode()) for text in texts) / (
        len(texts) * _BYTES_PER_TOKEN
    )


def _shown_tokens(section: Generate, num_seeds: int, row: float) -> float:
    """Tokens of examples, texts or chunks that a request shows."""
    if section.generator == "documents":
        return section.chunk_characters / _BYTES_PER_TOKEN
    if section.generator == "distill":
        return MAX_PAIRS_SHOWN * row
    if section.generator in ("self_instruct", "personas", "three_step", "label_first"):
        return min(section.num_seeds_shown, num_seeds) * row
    return _TEXTS_SHOWN.get(section.generator, 0.0) * row
