"""Varlen attention: samples lie end to end in one row of tokens, and no token sees another sample.

Owns the attention functions of the training step and their registration with transformers. The segments are an argument
of every call (`segments`), never guessed from positions or masks: a call without them is an error. A segment is a
sample, or the part of one that no other shares: then it names the rows of its beginning, which stand in the row of tokens
once for all samples that begin so (a trie). Sliding windows and linear position biases (ALiBi) are computed exactly; what is
not computed is refused by name. Refuses to know models, packing and losses.

Legend: T tokens of the row, L tokens of one segment, S tokens it sees (its beginning and itself), H query heads, K key/value
heads, G = H / K, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tunesmith.errors import ModelError, TrainingError
from tunesmith.training.attention_products import Products
from tunesmith.training.segments import PLAIN, Bias, Segment, Segments, rows_of

NAME = "tunesmith_varlen"
"""What `config._attn_implementation` is set to while a model trains."""

_LONGEST_WHOLE, _PIECE = 192, 128
"""Tokens that the last one of a segment sees, up to which a segment is computed in one piece, and the queries of a piece of a longer one:
no keys behind a piece are looked at. Measured on one AVX512-BF16 core, 9 heads of 64 (docs/experiments.md)."""


def varlen_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    slopes: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer. query (1, H, T, D), key and value (1, K, T, D) -> ((1, T, H, D), None).

    slopes: see Bias; transformers gives none, the layers of alibi.py do. Raises TrainingError without segments (the call
    would let samples see each other), ModelError for variants of attention that are not computed here.
    """
    if segments is None or attention_mask is not None:
        raise TrainingError("varlen attention needs the segments of the row, and no mask")
    window = options.get("sliding_window")
    if window is not None and window >= max(segment.num_seen for segment in segments):
        window = None
    _refuse_variants(module, options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and query.dtype != torch.float32 and dropout == 0 and slopes is None:
        return _flash_varlen(query, key, value, scale, segments, window), None
    bias = PLAIN if window is None and slopes is None else Bias(window, slopes)
    return attend(query, key, value, scale, segments, dropout, bias), None


_REFUSED = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "head_mask": "a mask of heads",
    "position_bias": "a learned position bias",
}


def _refuse_variants(module: Any, options: dict[str, Any]) -> None:
    found = [f"{words} (`{name}`)" for name, words in _REFUSED.items() if options.get(name) is not None]
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        found.append("attention that is not causal")
    if found:
        raise ModelError(
            f"the model's attention uses {found[0]}, which training does not compute yet",
            where=type(module).__name__,
            hint="choose another base model",
        )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    segments: Segments,
    dropout: float,
    bias: Bias = PLAIN,
) -> torch.Tensor:
    """Causal attention of each segment. (1, H, T, D), (1, K, T, D) twice -> (1, T, H, D).

    On a CPU by our own products, in pieces; else segment by segment through torch's kernel.
    """
    by_products = query.device.type == "cpu" and dropout == 0
    if by_products or bias is not PLAIN:
        segments = _cut(segments, bias.window)
    if by_products:
        return Products.apply(query, key, value, scale, segments, bias)  # pyright: ignore[reportReturnType]
    parts = [_attend_alone(query, key, value, scale, segment, dropout, bias) for segment in segments]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    segment: Segment,
    dropout: float,
    bias: Bias,
) -> torch.Tensor:
    """One segment through torch's kernel: (1, L, H, D). Its causal form begins at the first key, so the queries of a
    shared beginning are computed again, and dropped; with a bias there is a mask, and no need for that."""
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    k, v = (rows_of(tensor[0], segment.places)[None] for tensor in (key, value))
    if bias is not PLAIN:
        q = query[:, :, segment.start : segment.start + segment.length]
        mask = bias.matrix(segment.num_before, segment.num_seen, query.device)
        if query.is_cuda:
            mask = mask.to(query.dtype)  # its kernels want that; the CPU's take fp32 beside bf16
        mask = mask.expand(q.shape[1], -1, -1)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2)
    q = rows_of(query[0], segment.places)[None]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    return out[:, :, segment.num_before :].transpose(1, 2)


@lru_cache(maxsize=4)  # every layer of a step asks for the same one
def _cut(segments: Segments, window: int | None) -> Segments:
    """The same attention in pieces: no keys behind a piece, none that its window does not reach, and small masks."""
    pieces: list[Segment] = []
    for segment in segments:
        count = 1 if segment.num_seen <= _LONGEST_WHOLE else math.ceil(segment.length / _PIECE)
        ends = [segment.start + segment.length * part // count for part in range(count + 1)]
        for start, end in pairwise(ends):
            before = segment.seen if start == segment.start else (*segment.seen, (segment.start, start))
            pieces.append(Segment(start, end - start, before if window is None else _last_rows(before, window - 1)))
    return tuple(pieces)


def _last_rows(places: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The end of some places, `count` rows of it."""
    kept: list[tuple[int, int]] = []
    for start, end in reversed(places):
        if count <= 0:
            break
        kept.append((max(start, end - count), end))
        count -= end - start
    return tuple(reversed(kept))


def _flash_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, segments: Segments, window: int | None
) -> torch.Tensor:
    """torch's varlen flash kernel on a GPU: one call for all segments, no padding, no mask. Keys of a shared beginning are
    repeated for each segment that sees them; the kernel aligns the last query with the last key, and counts a window
    without the token itself."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # (T, heads, D)
    q_ends, k_ends, index = _flash_layout(segments, query.device)
    if index is not None:
        k, v = k[index], v[index]
    longest, most_seen = (max(getattr(each, name) for each in segments) for name in ("length", "num_seen"))
    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"window_size": (reach, 0), "enable_gqa": q.shape[1] != k.shape[1]}
    out = varlen_attn(q, k, v, q_ends, k_ends, longest, most_seen, scale=scale, **options)
    return out.unsqueeze(0)  # pyright: ignore[reportAttributeAccessIssue]


@lru_cache(maxsize=4)  # every layer of a step asks for the same one
def _flash_layout(segments: Segments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(N + 1,) where queries end, (N + 1,) where keys end, and the rows of all keys where some are repeated."""
    ends = [
        torch.tensor([0, *numbers], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        for numbers in ([each.length for each in segments], [each.num_seen for each in segments])
    ]
    index = None
    if any(segment.seen for segment in segments):
        places = [torch.arange(start, end) for segment in segments for start, end in segment.places]
        index = torch.cat(places).to(device)
    return ends[0], ends[1], index


AttentionInterface.register(NAME, varlen_attention)
