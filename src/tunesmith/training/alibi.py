"""Bloom's attention for the time of training: transformers computes it inside the layer, where no segment reaches it.

Owns the layer that stands in for it, and how segments get there: the model hands every layer what its
`build_alibi_tensor` returns, so that method returns the segments. Refuses to know other architectures: they all call an
attention function that can be registered.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tunesmith.training.attention import varlen_attention
from tunesmith.training.kernels import put_layer
from tunesmith.training.segments import Segments

_STANDS_FOR = "BloomAttention"


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """(H,) 2^(-8 i / n) for n heads, a power of two; further heads get the odd ones of the list for 2 n (Press et al.
    2021, arXiv 2108.12409, and the authors' code for other numbers of heads)."""
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [4 * i / power for i in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor([2.0**-exponent for exponent in exponents])


class VarlenBloomAttention(nn.Module):
    """The two linear maps of a BloomAttention around our attention function."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.query_key_value, self.dense = layer.query_key_value, layer.dense
        self.num_heads, self.head_dim = layer.num_heads, layer.head_dim
        self.attention_dropout, self.hidden_dropout = layer.attention_dropout, layer.hidden_dropout
        self.slopes = alibi_slopes(layer.num_heads).to(next(layer.parameters()).device)

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, *, alibi: Segments, **_options: Any
    ) -> tuple[torch.Tensor, None]:
        """(1, T, D) twice -> ((1, T, D), None). alibi: the segments, see `give_segments`."""
        fused = self.query_key_value(hidden_states).view(1, -1, self.num_heads, 3, self.head_dim)
        query, key, value = fused.transpose(1, 2).unbind(3)  # (1, H, T, head_dim) each
        dropout = self.attention_dropout.p if self.training else 0.0
        mixed, _ = varlen_attention(self, query, key, value, None, dropout=dropout, segments=alibi, slopes=self.slopes)
        out = self.dense(mixed.reshape(hidden_states.shape))
        return residual + F.dropout(out, self.hidden_dropout, self.training), None


def swap_bloom_attention(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Replace every BloomAttention. Returns (path, original) for `restore_layers`; empty for other models."""
    layers = [(path, layer) for path, layer in model.named_modules() if type(layer).__name__ == _STANDS_FOR]
    for path, layer in layers:
        put_layer(model, path, VarlenBloomAttention(layer).train(layer.training))
    return layers


@contextmanager
def give_segments(decoder: Any, segments: Segments, input_ids: torch.Tensor) -> Generator[dict[str, Any]]:
    """Inside, a Bloom decoder hands the segments to its layers. Yields the arguments it has to be called with."""
    if not hasattr(decoder, "build_alibi_tensor"):
        yield {}
        return
    decoder.build_alibi_tensor = lambda *_args, **_options: segments
    try:
        yield {"attention_mask": torch.ones_like(input_ids)}  # without one it builds a bias of its own
    finally:
        del decoder.build_alibi_tensor
