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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tunesmith.errors import ModelError, TrainingError

NAME = "tunesmith_varlen"
"""What `config._attn_implementation` is set to while a model trains."""

_LONGEST_DIRECT = 384
"""Longest sample whose attention weights are kept for the backward pass. Measured on one AVX512-BF16 core, 9 heads of
64, forward + backward per 1,000 tokens: 200 tokens 18 ms against 30 ms of torch's flash kernel, 320: 30 against 37,
512: 55 against 55."""


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows that attend causally to themselves and, before that, to everything in `seen`."""

    start: int
    length: int
    seen: tuple[tuple[int, int], ...] = ()  # (start, end) of the rows of its beginning, first token first

    @property
    def num_before(self) -> int:
        """Tokens of the beginning: the position of the segment's first token."""
        return sum(end - start for start, end in self.seen)

    @property
    def num_seen(self) -> int:
        """Tokens the last one of the segment sees, itself included."""
        return self.num_before + self.length

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of the rows seen, the segment's own last."""
        return (*self.seen, (self.start, self.start + self.length))


Segments = tuple[Segment, ...]
"""Segments of a row of tokens: they cover it in order, and see only rows before themselves."""


@dataclass(frozen=True)
class Bias:
    """What is added to the scores beside the causal mask."""

    window: int | None = None  # the last keys a token sees, itself included; None: all
    slopes: torch.Tensor | None = None  # (H,) ALiBi's fall per token of distance (Press et al. 2021, arXiv 2108.12409)

    def matrix(self, before: int, seen: int, device: torch.device | None = None) -> torch.Tensor:
        """(L, S) or (H, L, S) in fp32, for queries that are the last L = S - before of S tokens in a row."""
        bias = torch.full((seen - before, seen), float("-inf"), device=device).triu_(before + 1)
        if self.window is not None:
            bias += torch.full_like(bias, float("-inf")).tril_(before - self.window)
        if self.slopes is None:
            return bias
        ago = torch.arange(seen, device=device) - torch.arange(before, seen, device=device)[:, None]  # (L, S) <= 0
        return bias + self.slopes.float()[:, None, None] * ago


_PLAIN = Bias()


def build_segments(lengths: Sequence[int]) -> Segments:
    """Segments of samples with these lengths that share nothing, laid end to end."""
    starts = accumulate(lengths, initial=0)
    return tuple(Segment(start, length) for start, length in zip(starts, lengths, strict=False))


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
    bias = _PLAIN if window is None and slopes is None else Bias(window, slopes)
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
    bias: Bias = _PLAIN,
) -> torch.Tensor:
    """Causal attention of each segment. (1, H, T, D), (1, K, T, D) twice -> (1, T, H, D).

    All short segments go through one `_Direct`, longer ones one by one through torch's kernel.
    """
    direct = query.device.type == "cpu" and dropout == 0
    if bias is not _PLAIN:
        segments = _cut(segments, bias.window)
    short = tuple(segment for segment in segments if direct and segment.num_seen <= _LONGEST_DIRECT)
    together: Any = _Direct.apply(query, key, value, scale, short, bias) if short else None
    if len(short) == len(segments):
        return together
    parts: list[torch.Tensor] = []
    for is_short, run in groupby(segments, key=set(short).__contains__):
        if is_short:
            neighbours = list(run)
            parts.append(together[:, neighbours[0].start : neighbours[-1].start + neighbours[-1].length])
        else:
            parts += [_attend_alone(query, key, value, scale, segment, dropout, bias) for segment in run]
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
    k, v = (_rows(tensor[0], segment.places)[None] for tensor in (key, value))
    if bias is not _PLAIN:
        q = query[:, :, segment.start : segment.start + segment.length]
        mask = bias.matrix(segment.num_before, segment.num_seen, query.device)
        if query.is_cuda:
            mask = mask.to(query.dtype)  # its kernels want that; the CPU's take fp32 beside bf16
        mask = mask.expand(q.shape[1], -1, -1)[None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).transpose(1, 2)
    q = _rows(query[0], segment.places)[None]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    return out[:, :, segment.num_before :].transpose(1, 2)


@lru_cache(maxsize=4)  # every layer of a step asks for the same one
def _cut(segments: Segments, window: int | None) -> Segments:
    """The same attention in pieces that make small masks: each sees no row that its window does not reach."""
    reach = 0 if window is None else window - 1
    longest = max(_LONGEST_DIRECT - reach, _LONGEST_DIRECT // 2)
    pieces: list[Segment] = []
    for segment in segments:
        if segment.num_seen <= _LONGEST_DIRECT:
            pieces.append(segment)
            continue
        for start in range(segment.start, segment.start + segment.length, longest):
            before = segment.seen if start == segment.start else (*segment.seen, (segment.start, start))
            length = min(longest, segment.start + segment.length - start)
            pieces.append(Segment(start, length, before if window is None else _last_rows(before, reach)))
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


def _rows(tensor: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(heads, T, D) -> (heads, S, D), a view where the places are one."""
    parts = [tensor[:, start:end] for start, end in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class _Direct(torch.autograd.Function):
    """Attention by plain matrix products, segment by segment. The weights are kept, so the backward pass recomputes
    nothing. Scores and their gradients are formed in fp32, as flash kernels do; everything stored is in the model's
    dtype, except the gradients of keys and values that several segments see: they are summed in fp32. Query heads that
    share a key head are stacked into one product (G L rows). Rows of no segment: zero."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        segments: Segments,
        bias: Bias,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        key_heads = key.shape[1]
        whole = sum(segment.length for segment in segments) == tokens
        out = (query.new_empty if whole else query.new_zeros)(1, tokens, heads, width)
        added = bias.matrix(0, max(segment.num_seen for segment in segments))
        kept: list[torch.Tensor] = []
        for segment in segments:
            length, before, seen = segment.length, segment.num_before, segment.num_seen
            rows = slice(segment.start, segment.start + length)
            q = (query[0, :, rows].float() * scale).reshape(key_heads, -1, width)  # (K, G L, D)
            k = _rows(key[0], segment.places).float()  # (K, S, D)
            scores = torch.bmm(q, k.transpose(1, 2)).view(heads, length, seen)
            scores.add_(added[..., before:seen, :seen])
            weights = torch.softmax(scores, -1).to(query.dtype).view(key_heads, -1, seen)  # (K, G L, S)
            mixed = torch.bmm(weights, _rows(value[0], segment.places))
            out[0, rows] = mixed.view(heads, length, width).transpose(0, 1)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.scale, ctx.segments, ctx.whole = scale, segments, whole
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        grad = grads[0]  # (1, T, H, D)
        _, heads, tokens, width = query.shape
        key_heads, dtype = key.shape[1], query.dtype
        shared = any(segment.seen for segment in ctx.segments)
        summed = torch.float32 if shared and dtype != torch.float64 else dtype
        blank = query.new_empty if ctx.whole else query.new_zeros
        grad_q = blank(1, tokens, heads, width).transpose(1, 2)
        blank = query.new_zeros if shared or not ctx.whole else query.new_empty
        grad_k, grad_v = (blank(1, tokens, key_heads, width, dtype=summed).transpose(1, 2) for _ in range(2))
        inner = torch.linalg.vecdot(grad[0].float(), out[0].float()).t()  # (H, T) sum over D
        for segment, weights in zip(ctx.segments, kept, strict=True):
            length, seen = segment.length, segment.num_seen
            rows = slice(segment.start, segment.start + length)
            q = query[0, :, rows].reshape(key_heads, -1, width)  # (K, G L, D)
            k, v = _rows(key[0], segment.places), _rows(value[0], segment.places).float()  # (K, S, D)
            g = grad[0, rows].transpose(0, 1).reshape(key_heads, -1, width)  # (K, G L, D)
            grad_w = torch.bmm(g.float(), v.transpose(1, 2)).view(heads, length, seen)
            grad_w.sub_(inner[:, rows, None]).mul_(weights.view(heads, length, seen))
            grad_s = grad_w.to(dtype).view(key_heads, -1, seen)  # (K, G L, S)
            grad_q[0, :, rows] = torch.bmm(grad_s, k).view(heads, length, width).mul_(ctx.scale)
            _spread(grad_v, torch.bmm(weights.transpose(1, 2), g), segment, shared)
            _spread(grad_k, torch.bmm(grad_s.transpose(1, 2), q).mul_(ctx.scale), segment, shared)
        return grad_q, grad_k.to(dtype), grad_v.to(dtype), None, None, None


def _spread(total: torch.Tensor, part: torch.Tensor, segment: Segment, add: bool) -> None:
    """Put (K, S, D) of a segment where its rows stand in (1, K, T, D)."""
    offset = 0
    for start, end in segment.places:
        there, piece = total[0, :, start:end], part[:, offset : offset + end - start]
        there.add_(piece) if add else there.copy_(piece)
        offset += end - start


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
