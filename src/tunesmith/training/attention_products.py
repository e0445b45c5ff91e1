"""Attention by plain matrix products, segment by segment, forward and backward: what a CPU trains with.

Its speed beside torch's flash kernel stands in docs/experiments.md. Weights are kept for the backward pass up to a bound, beyond it they are
computed again. Scores and their gradients are formed in fp32, as flash kernels do; everything stored is in the model's
dtype, except the gradients of keys and values that several segments see: they are summed in fp32. Query heads that
share a key head are stacked into one product (G L rows). Knows no models and no packing.

Legend: T tokens of the row, L tokens of one segment, S tokens it sees (its beginning and itself), H query heads, K key/value
heads, G = H / K, D head width.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.training.segments import PLAIN, Bias, Segment, Segments, rows_of

_KEPT_PER_TOKEN = 384
"""Weights that are kept for the backward pass, per head and token of the row: what samples of 384 tokens have in all. It
bounds memory; what goes beyond is computed again."""


class Products(torch.autograd.Function):
    """(1, H, T, D), (1, K, T, D) twice -> (1, T, H, D). Rows of no segment: zero."""

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
        whole = sum(segment.length for segment in segments) == tokens
        out = (query.new_empty if whole else query.new_zeros)(1, tokens, heads, width)
        scores = _Scores(query, key, scale, segments, bias)
        room = _KEPT_PER_TOKEN * tokens
        kept: list[torch.Tensor | None] = []
        for segment in segments:
            weights = scores.weights(segment)
            mixed = torch.bmm(weights, rows_of(value[0], segment.places))
            out[0, segment.rows] = mixed.view(heads, segment.length, width).transpose(0, 1)
            room -= segment.length * segment.num_seen
            kept.append(weights if room >= 0 else None)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.scale, ctx.segments, ctx.bias, ctx.whole = scale, segments, bias, whole
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        grad = grads[0]  # (1, T, H, D)
        _, heads, tokens, width = query.shape
        key_heads, dtype = key.shape[1], query.dtype
        scores: _Scores | None = None
        shared = any(segment.seen for segment in ctx.segments)
        summed = torch.float32 if shared and dtype != torch.float64 else dtype
        blank = query.new_empty if ctx.whole else query.new_zeros
        grad_q = blank(1, tokens, heads, width).transpose(1, 2)
        blank = query.new_zeros if shared or not ctx.whole else query.new_empty
        grad_k, grad_v = (blank(1, tokens, key_heads, width, dtype=summed).transpose(1, 2) for _ in range(2))
        inner = torch.linalg.vecdot(grad[0].float(), out[0].float()).t()  # (H, T) sum over D
        wide_v = value[0].float()
        for segment, found in zip(ctx.segments, kept, strict=True):
            weights = found
            if weights is None:
                scores = scores or _Scores(query, key, ctx.scale, ctx.segments, ctx.bias)
                weights = scores.weights(segment)
            length, seen, rows = segment.length, segment.num_seen, segment.rows
            q = query[0, :, rows].reshape(key_heads, -1, width)  # (K, G L, D)
            k, v = rows_of(key[0], segment.places), rows_of(wide_v, segment.places)  # (K, S, D)
            g = grad[0, rows].transpose(0, 1).reshape(key_heads, -1, width)  # (K, G L, D)
            grad_w = torch.bmm(g.float(), v.transpose(1, 2)).view(heads, length, seen)
            grad_w.sub_(inner[:, rows, None]).mul_(weights.view(heads, length, seen))
            grad_s = grad_w.to(dtype).view(key_heads, -1, seen)  # (K, G L, S)
            grad_q[0, :, rows] = torch.bmm(grad_s, k).view(heads, length, width).mul_(ctx.scale)
            _spread(grad_v, torch.bmm(weights.transpose(1, 2), g), segment, shared)
            _spread(grad_k, torch.bmm(grad_s.transpose(1, 2), q).mul_(ctx.scale), segment, shared)
        return grad_q, grad_k.to(dtype), grad_v.to(dtype), None, None, None


class _Scores:
    """What a segment's queries give to what they see."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, scale: float, segments: Segments, bias: Bias) -> None:
        self.query, self.scale, self.bias = query, scale, bias
        self.keys = key[0].float()  # (K, T, D)
        longest = max(segment.length for segment in segments)
        self.future = PLAIN.matrix(0, longest)  # (L, L) for the longest

    def weights(self, segment: Segment) -> torch.Tensor:
        """(K, G L, S) in the model's dtype, each row sums to 1."""
        heads, width = self.query.shape[1], self.query.shape[3]
        length, before, seen = segment.length, segment.num_before, segment.num_seen
        q = (self.query[0, :, segment.rows].float() * self.scale).reshape(len(self.keys), -1, width)  # (K, G L, D)
        k = rows_of(self.keys, segment.places)  # (K, S, D)
        scores = torch.bmm(q, k.transpose(1, 2)).view(heads, length, seen)
        if self.bias is PLAIN:
            scores[..., before:].add_(self.future[:length, :length])
        else:
            scores.add_(self.bias.matrix(before, seen))
        return torch.softmax(scores, -1).to(self.query.dtype).view(len(self.keys), -1, seen)


def _spread(total: torch.Tensor, part: torch.Tensor, segment: Segment, add: bool) -> None:
    """Put (K, S, D) of a segment where its rows stand in (1, K, T, D)."""
    offset = 0
    for start, end in segment.places:
        there, piece = total[0, :, start:end], part[:, offset : offset + end - start]
        there.add_(piece) if add else there.copy_(piece)
        offset += end - start
