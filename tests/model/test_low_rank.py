"""The low-rank layers: values and gradients against plain formulas, dropout, orientation, what merging gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model.low_rank import DoraLinear, LoraLinear

KINDS = list(itertools.product([LoraLinear, DoraLinear], ["linear", "linear without bias", "conv1d"]))
EVERY_KIND = pytest.mark.parametrize(("kind", "form"), KINDS)


def build(
    kind: type[LoraLinear], form: str = "linear", dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> Any:
    """A layer from 6 to 5 numbers whose adapter matters."""
    torch.manual_seed(0)
    base = Conv1D(5, 6) if form == "conv1d" else nn.Linear(6, 5, bias=form == "linear")
    nn.init.normal_(base.weight)
    if base.bias is not None:
        nn.init.normal_(base.bias)
    layer = kind(base.to(dtype), rank=2, scale=0.5, dropout=dropout)
    layer.lora_A.data.normal_()
    layer.lora_B.data.normal_()
    if isinstance(layer, DoraLinear):
        layer.lora_magnitude_vector.data.uniform_(0.5, 3)
    return layer


def plain(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The published formula, written down, with gradients by torch. DoRA holds the row lengths constant."""
    weight = layer.base.weight.t() if isinstance(layer.base, Conv1D) else layer.base.weight
    moved = weight + layer.scale * layer.lora_B @ layer.lora_A
    if isinstance(layer, DoraLinear):
        lengths = moved.norm(dim=1).detach()
        moved = moved * (layer.lora_magnitude_vector / lengths)[:, None]
    return F.linear(x, moved, layer.base.bias)


def trained(layer: Any) -> list[torch.Tensor]:
    return [getattr(layer, part) for part in layer.parts]


@EVERY_KIND
def test_values_and_every_gradient_equal_the_formula(kind: type[LoraLinear], form: str) -> None:
    layer = build(kind, form)
    x, direction = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 5)
    inputs = (x, *trained(layer))
    torch.testing.assert_close(layer(x), plain(layer, x))
    ours = torch.autograd.grad(layer(x), inputs, direction)
    theirs = torch.autograd.grad(plain(layer, x), inputs, direction)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(p.requires_grad for p in layer.base.parameters())


@EVERY_KIND
def test_the_input_may_need_no_gradient(kind: type[LoraLinear], form: str) -> None:
    layer = build(kind, form)
    layer(torch.randn(4, 6)).sum().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in trained(layer))


@EVERY_KIND
def test_the_merged_weight_is_one_linear_map_in_the_orientation_of_the_base(kind: type[LoraLinear], form: str) -> None:
    layer = build(kind, form)
    x = torch.randn(4, 6)
    expected = layer(x)
    with torch.no_grad():
        layer.base.weight.copy_(layer.merged_weight())
    torch.testing.assert_close(layer.base(x), expected)


@pytest.mark.parametrize("kind", [LoraLinear, DoraLinear])
def test_dropout_acts_in_training_only_and_leaves_the_base_path_alone(kind: type[LoraLinear]) -> None:
    layer = build(kind, dropout=0.5)
    x = torch.randn(4, 6)
    assert not torch.equal(layer.train()(x), layer(x))
    torch.testing.assert_close(layer.eval()(x), plain(layer, x))
    layer.lora_B.data.zero_()
    torch.testing.assert_close(layer.train()(x), plain(layer, x))


def test_the_mean_over_dropout_draws_is_the_answer_without_dropout() -> None:
    layer = build(DoraLinear, dropout=0.5).train()
    x = torch.randn(1, 6)
    torch.manual_seed(1)
    many = layer(x.expand(200_000, 6)).mean(0)
    torch.testing.assert_close(many, plain(layer, x)[0], atol=0.03, rtol=0.01)


def test_dropout_gradients_reach_the_magnitudes() -> None:
    layer = build(DoraLinear, dropout=0.5).train()
    layer(torch.randn(4, 6)).sum().backward()
    assert bool(layer.lora_magnitude_vector.grad.all())


def test_row_lengths_are_those_of_the_matrix_that_is_never_formed() -> None:
    layer = build(DoraLinear)
    expected = (layer.base.weight + 0.5 * layer.lora_B @ layer.lora_A).norm(dim=1)
    torch.testing.assert_close(layer.row_lengths(layer.lora_A, layer.lora_B), expected)


def test_a_new_dora_layer_is_the_base_to_the_bit() -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 5, bias=False)
    layer = DoraLinear(base, rank=2, scale=0.5, dropout=0.0)
    layer.lora_A.data.normal_()
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), base(x))
    assert torch.equal(layer.lora_magnitude_vector, torch.linalg.vector_norm(base.weight, dim=1).square().sqrt())


def test_a_row_of_zeros_stays_zero_instead_of_spreading_nan() -> None:
    base = nn.Linear(6, 5)
    base.weight.data[2].zero_()
    layer = DoraLinear(base, rank=2, scale=0.5, dropout=0.0)
    layer.lora_A.data.normal_()
    out = layer(torch.randn(4, 6))
    assert bool(torch.isfinite(out).all()) and torch.equal(out[:, 2], base.bias[2].expand(4))
    assert bool(torch.isfinite(layer.merged_weight()).all())


@pytest.mark.parametrize("kind", [LoraLinear, DoraLinear])
def test_bf16_agrees_with_fp32_to_its_rounding_and_gives_fp32_gradients(kind: type[LoraLinear]) -> None:
    layer, x = build(kind, dtype=torch.bfloat16), torch.randn(64, 6)
    out = layer(x.bfloat16())
    assert out.dtype == torch.bfloat16
    expected = plain(layer.float(), x)
    assert float((out.float() - expected).detach().norm() / expected.detach().norm()) < 0.01
    layer = build(kind, dtype=torch.bfloat16)
    layer(x.bfloat16()).sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in trained(layer))


def test_magnitudes_keep_steps_that_bf16_would_lose() -> None:
    layer = build(DoraLinear, dtype=torch.bfloat16)
    x = torch.full((256, 6), 1.0).bfloat16() * torch.linspace(1, 2, 256).bfloat16()[:, None]
    before = layer(x)
    layer.lora_magnitude_vector.data.mul_(1.001)  # less than half a step of bf16 beside 1
    assert not torch.equal(layer(x), before)


def test_merging_a_bf16_weight_rounds_once() -> None:
    layer = LoraLinear(nn.Linear(1, 1, bias=False).bfloat16(), rank=2, scale=1.0, dropout=0.0)
    layer.base.weight.data.fill_(1.0)
    layer.lora_A.data.fill_(1.0)
    layer.lora_B.data.copy_(torch.tensor([[0.003, 0.003]]))  # each alone is lost beside 1 in bf16, together they count
    assert layer.merged_weight().item() == torch.tensor(1.006).bfloat16().item() != 1.0
