"""Varlen attention: samples lie end to end in one row of tokens, and no token sees another sample.

Owns the attention functions of the training step and their registration with transformers. The segments are an argument
of every call (`segments`), never guessed from positions or masks: a call without them is an error. Refuses to know
models, packing and losses.

Legend: T tokens of all samples, L tokens of one sample, H query heads, K key/value heads, G = H / K, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
class Segments:
    """Where the samples of a row lie: their lengths, in order."""

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor  # (S + 1,) int32, on the device of the model

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths)


def build_segments(lengths: Sequence[int], device: torch.device) -> Segments:
    """Segments of samples with these lengths, laid end to end."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Segments(tuple(lengths), ends.to(device))


def varlen_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer. query (1, H, T, D), key and value (1, K, T, D) -> ((1, T, H, D), None).

    Raises TrainingError without segments (the call would let samples see each other), ModelError for variants of
    attention that are not computed here.
    """
    if segments is None or attention_mask is not None:
        raise TrainingError("varlen attention needs the segments of the row, and no mask")
    window = options.get("sliding_window")
    if window is not None and window >= segments.longest:
        window = None
    _refuse_variants(module, options, window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.is_cuda and query.dtype != torch.float32 and dropout == 0:
        return _flash_varlen(query, key, value, scale, segments), None
    return attend(query, key, value, scale, segments.lengths, dropout), None


def _refuse_variants(module: Any, options: dict[str, Any], window: int | None) -> None:
    found = [name for name in ("softcap", "s_aux", "head_mask") if options.get(name) is not None]
    if window is not None:
        found.append(f"sliding_window ({window} tokens, shorter than a sample)")
    if not getattr(module, "is_causal", True):
        found.append("attention that is not causal")
    if found:
        raise ModelError(
            f"the model's attention uses {found[0]}, which training does not compute yet",
            where=type(module).__name__,
            hint="choose another base model" if window is None else "lower tokenize.max_length to the window",
        )


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, lengths: Sequence[int], dropout: float
) -> torch.Tensor:
    """Causal attention inside each sample. (1, H, T, D), (1, K, T, D) twice -> (1, T, H, D).

    Runs of short samples go through `_Direct`, longer ones one by one through torch's kernel.
    """
    parts: list[torch.Tensor] = []
    start = 0
    for short, run in _runs(lengths, direct=query.device.type == "cpu" and dropout == 0):
        rows = slice(start, start + sum(run))
        start = rows.stop
        q, k, v = query[:, :, rows], key[:, :, rows], value[:, :, rows]
        if short:
            parts.append(_Direct.apply(q, k, v, scale, run))  # pyright: ignore[reportArgumentType]
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
            )
            parts.append(out.transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _runs(lengths: Sequence[int], *, direct: bool) -> list[tuple[bool, tuple[int, ...]]]:
    """Neighbouring short samples together, every other one alone."""
    runs: list[tuple[bool, tuple[int, ...]]] = []
    for length in lengths:
        short = direct and length <= _LONGEST_DIRECT
        if short and runs and runs[-1][0]:
            runs[-1] = (True, (*runs[-1][1], length))
        else:
            runs.append((short, (length,)))
    return runs


class _Direct(torch.autograd.Function):
    """Attention by plain matrix products, sample by sample. The weights are kept, so the backward pass recomputes
    nothing. Scores and their gradients are formed in fp32, as flash kernels do; everything stored is in the model's
    dtype. Query heads that share a key head are stacked into one product (G L rows)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, lengths: tuple[int, ...]
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        key_heads = key.shape[1]
        out = query.new_empty(1, tokens, heads, width)
        future = torch.full((max(lengths),) * 2, float("-inf")).triu_(1)  # (L, L)
        kept: list[torch.Tensor] = []
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            start += length
            q = (query[0, :, rows].float() * scale).reshape(key_heads, -1, width)  # (K, G L, D)
            k = key[0, :, rows].float()  # (K, L, D)
            scores = torch.bmm(q, k.transpose(1, 2)).view(heads, length, length)
            scores.add_(future[:length, :length])
            weights = torch.softmax(scores, -1).to(query.dtype).view(key_heads, -1, length)  # (K, G L, L)
            out[0, rows] = torch.bmm(weights, value[0, :, rows]).view(heads, length, width).transpose(0, 1)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.scale, ctx.lengths = scale, lengths
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        grad = grads[0]  # (1, T, H, D)
        _, heads, tokens, width = query.shape
        key_heads, dtype = key.shape[1], query.dtype
        grad_q = query.new_empty(1, tokens, heads, width).transpose(1, 2)
        grad_k, grad_v = (query.new_empty(1, tokens, key_heads, width).transpose(1, 2) for _ in range(2))
        inner = torch.linalg.vecdot(grad[0].float(), out[0].float()).t()  # (H, T) sum over D
        start = 0
        for length, weights in zip(ctx.lengths, kept, strict=True):
            rows = slice(start, start + length)
            start += length
            q = query[0, :, rows].reshape(key_heads, -1, width)  # (K, G L, D)
            k, v = key[0, :, rows], value[0, :, rows].float()  # (K, L, D)
            g = grad[0, rows].transpose(0, 1).reshape(key_heads, -1, width)  # (K, G L, D)
            grad_v[0, :, rows] = torch.bmm(weights.transpose(1, 2), g)
            grad_w = torch.bmm(g.float(), v.transpose(1, 2)).view(heads, length, length)
            grad_w.sub_(inner[:, rows, None]).mul_(weights.view(heads, length, length))
            grad_s = grad_w.to(dtype).view(key_heads, -1, length)  # (K, G L, L)
            grad_q[0, :, rows] = torch.bmm(grad_s, k).view(heads, length, width).mul_(ctx.scale)
            grad_k[0, :, rows] = torch.bmm(grad_s.transpose(1, 2), q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None, None


def _flash_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, segments: Segments
) -> torch.Tensor:
    """torch's varlen flash kernel on a GPU: one call for all samples, no padding, no mask."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # (T, heads, D)
    ends, longest = segments.cu_seqlens, segments.longest
    out = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.unsqueeze(0)  # pyright: ignore[reportAttributeAccessIssue]


AttentionInterface.register(NAME, varlen_attention)
