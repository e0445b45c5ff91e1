"""The fast RMSNorm computes what the plain one does, and stands in only for layers it reproduces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.training.kernels import FastRmsNorm, restore_layers, swap_norms


class PlainRMSNorm(nn.Module):
    """The textbook form; `shift` makes it the variant that multiplies by 1 + w."""

    def __init__(self, width: int, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.variance_epsilon = 1e-5
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return normal * (self.weight + self.shift)


def test_outputs_and_gradients_equal_the_plain_form() -> None:
    x = torch.randn(2, 5, 16, dtype=torch.float32, requires_grad=True)
    plain = PlainRMSNorm(16)
    fast = FastRmsNorm(plain.weight, 1e-5)
    direction = torch.randn(2, 5, 16)
    torch.testing.assert_close(fast(x), plain(x))
    expected = torch.autograd.grad(plain(x), (x, plain.weight), direction)
    found = torch.autograd.grad(fast(x), (x, plain.weight), direction)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_bf16_rounds_once_so_it_is_nearer_to_exact_than_the_layers_own_form(tiny_model: Any) -> None:
    own = tiny_model.model.norm
    rows = torch.randn(50, 64)
    exact = own(rows)
    half = own.bfloat16()
    fast = FastRmsNorm(half.weight, own.variance_epsilon)
    ours, theirs = fast(rows.bfloat16()).float(), half(rows.bfloat16()).float()
    assert (ours - exact).norm() <= (theirs - exact).norm() * 1.02


def test_every_norm_is_swapped_and_put_back(tiny_model: Any) -> None:
    names = list(tiny_model.state_dict())
    originals = [layer for layer in tiny_model.modules() if type(layer).__name__ == "LlamaRMSNorm"]
    swapped = swap_norms(tiny_model)
    assert len(swapped) == len(originals) == 5
    assert isinstance(tiny_model.model.layers[0].input_layernorm, FastRmsNorm)
    assert list(tiny_model.state_dict()) == names
    restore_layers(tiny_model, swapped)
    assert [layer for layer in tiny_model.modules() if type(layer).__name__ == "LlamaRMSNorm"] == originals


def test_a_variant_with_other_arithmetic_stays_as_it_is() -> None:
    model = nn.Sequential(PlainRMSNorm(8), PlainRMSNorm(8, shift=0.0))
    assert len(swap_norms(model)) == 2
    assert swap_norms(nn.Sequential(PlainRMSNorm(8, shift=1.0))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_are_no_rms_norm_are_left_alone(dtype: torch.dtype) -> None:
    assert swap_norms(nn.Sequential(nn.LayerNorm(8, dtype=dtype), nn.Linear(8, 8, dtype=dtype))) == []
