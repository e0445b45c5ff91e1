"""Loss by position: whether a model still uses what it read long ago, or loses the thread past some length.

Each text is cut into windows, every token of a window is predicted from all before it, and losses are averaged by the
token's place in its window. A model that uses its context falls from bucket to bucket; one beyond its reach rises.
Refuses to know files and tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from tunesmith.errors import DataError

_FIRST_BUCKET = 64  # tokens; every further bucket ends at twice the place
_HEAD_ROWS = 512  # rows of logits at a time: 512 x 150,000 in fp32 are 0.3 GB
_PROBE_TOKENS = 8
_SAME = 1e-3  # of the largest logit: two sums of one formula


@dataclass(frozen=True)
class Bucket:
    """Tokens whose place in their window is in [start, end): how well they are predicted, in nats per token."""

    start: int
    end: int
    num_tokens: int
    mean_loss: float
    stderr: float  # of the mean, windows taken as independent; 0 with one window
    num_windows: int


@dataclass(frozen=True)
class ContextReport:
    """The curve, with the limits it was measured under."""

    length: int
    num_texts: int
    num_windows: int
    num_tokens: int
    mean_loss: float
    buckets: tuple[Bucket, ...]


def bucket_edges(length: int) -> list[int]:
    """0, 64, 128, 256, ... up to the length, which ends the last bucket."""
    edges = [0]
    end = _FIRST_BUCKET
    while end < length:
        edges.append(end)
        end *= 2
    return [*edges, length]


def measure_context(
    model: Any, texts: Iterable[Sequence[int]], *, length: int, max_windows: int, on_done: Callable[[int], None]
) -> ContextReport:
    """Losses of a loaded causal model over texts of token ids, by position.

    length: tokens of a window. A text's last window may be shorter; one of fewer than two tokens is left out. At most
    max_windows are measured, evenly from all texts, long ones first: they alone tell about far positions. DataError where
    no text fills half a window, so that the far half would go unmeasured. on_done(windows so far) after each.
    """
    ids = [list(text) for text in texts]
    windows = [text[start : start + length] for text in ids for start in range(0, len(text), length)]
    windows = sorted((window for window in windows if len(window) > 1), key=len, reverse=True)[:max_windows]
    longest = len(windows[0]) if windows else 0
    if longest <= length // 2:
        raise DataError(
            f"the longest text has {longest:,} tokens, which tells nothing about {length:,}",
            hint="name longer texts, or measure a smaller length",
        )
    edges = bucket_edges(length)
    sums: list[list[float]] = [[] for _ in edges[1:]]
    counts: list[list[int]] = [[] for _ in edges[1:]]
    by_rows = head_is_all(model)
    for number, window in enumerate(windows):
        losses = token_losses(model, window, by_rows=by_rows)
        for place, (start, end) in enumerate(pairwise(edges)):
            part = losses[max(start - 1, 0) : end - 1]  # the loss at row i is of the token at place i + 1
            if len(part):
                sums[place].append(float(part.sum()))
                counts[place].append(len(part))
        on_done(number + 1)
    buckets = tuple(
        _bucket(start, end, place_sums, place_counts)
        for (start, end), place_sums, place_counts in zip(pairwise(edges), sums, counts, strict=True)
        if place_counts
    )
    total = sum(map(sum, counts))
    mean = sum(map(sum, sums)) / total
    return ContextReport(length, len(ids), len(windows), total, mean, buckets)


@torch.no_grad()
def token_losses(model: Any, input_ids: Sequence[int], *, by_rows: bool) -> torch.Tensor:
    """(T - 1,) fp32: minus the log-probability of each token but the first, given all before it.

    by_rows: the output head sees a few rows at a time, so that long texts need no table of all logits (T x vocabulary);
    right only where `head_is_all`.
    """
    ids = torch.tensor([list(input_ids)], device=model.device)
    targets = ids[0, 1:]
    if not by_rows:
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        return functional.cross_entropy(logits.float(), targets, reduction="none")
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    parts = [
        functional.cross_entropy(head(rows).float(), wanted, reduction="none")
        for rows, wanted in zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    ]
    return torch.cat(parts)


@torch.no_grad()
def head_is_all(model: Any) -> bool:
    """Whether logits are the head applied to the last hidden state, and nothing else (no cap, no scale)."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    logits = model(input_ids=ids, use_cache=False).logits
    plain = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return plain.shape == logits.shape and bool((plain - logits).abs().max() <= _SAME * logits.abs().max())


def _bucket(start: int, end: int, sums: Sequence[float], counts: Sequence[int]) -> Bucket:
    """Mean over all tokens; its error from how the windows' own sums scatter about it (ratio estimator)."""
    total, number = sum(counts), len(counts)
    mean = sum(sums) / total
    spread = sum((value - mean * count) ** 2 for value, count in zip(sums, counts, strict=True))
    stderr = (spread * number / (number - 1)) ** 0.5 / total if number > 1 else 0.0
    return Bucket(start, end, total, mean, stderr, number)
