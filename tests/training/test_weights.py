"""Masters in fp32: steps too small for bf16 are kept, gradients are collected, checkpoints restore everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.errors import TrainingError
from tunesmith.training.weights import TrainableWeights


def build(model: nn.Module, **changes: Any) -> TrainableWeights:
    options: dict[str, Any] = {"learning_rate": 1e-3, "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0}
    return TrainableWeights(model, **{**options, **changes})


def linear(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


def take_step(model: nn.Linear, weights: TrainableWeights, rate: float) -> None:
    model(torch.ones(2, 4, dtype=model.weight.dtype)).float().sum().backward()
    weights.step(rate)


def test_epsilon_shortens_the_steps_of_weights_with_small_gradients() -> None:
    moved = dict[float, float]()
    for epsilon in (1e-8, 1e-5):
        model = linear(torch.float32)
        with build(model, epsilon=epsilon) as weights:
            before = model.weight.detach().clone()
            model.weight.grad = torch.full_like(model.weight, 1e-5)
            weights.step(1e-3)
            moved[epsilon] = float((before - model.weight.detach()).mean())
    assert moved[1e-8] == pytest.approx(1e-3, rel=2e-3)  # AdamW: rate * g / (|g| + epsilon)
    assert moved[1e-5] == pytest.approx(0.5e-3, rel=2e-3)


def test_steps_too_small_for_bf16_add_up_in_the_master() -> None:
    model = linear(torch.bfloat16)
    model.weight.data.fill_(1.0)
    weights = build(model)
    for _ in range(100):
        take_step(model, weights, 1e-4)
    assert weights.masters["weight"][0, 0].item() == pytest.approx(0.99, abs=1e-4)
    assert model.weight[0, 0].item() == torch.tensor(0.99).bfloat16().item()  # the rounded master, not 1.0


def test_gradients_of_several_backward_passes_add_up_in_fp32() -> None:
    model = linear(torch.bfloat16)
    weights = build(model)
    for scale in (1.0, 1 / 512):  # the second would be lost in a bf16 sum
        (model(torch.full((1, 4), scale, dtype=torch.bfloat16)).sum()).backward()
    gradient = weights.masters["weight"].grad
    assert gradient is not None and gradient.dtype == torch.float32
    assert gradient[0, 0].item() == 1 + 1 / 512
    assert model.weight.grad is None  # handed over, and its memory freed


def test_fp32_parameters_are_their_own_masters() -> None:
    model = linear(torch.float32)
    assert build(model).masters["weight"] is model.weight


def test_the_norm_is_reported_as_it_was_before_clipping() -> None:
    model = linear(torch.float32)
    weights = build(model)
    model(torch.full((1, 4), 10.0)).sum().backward()
    norm = weights.clip(1.0)
    assert norm == pytest.approx((12 * 100 + 3) ** 0.5)
    clipped = sum(float(master.grad.pow(2).sum()) for master in weights.masters.values() if master.grad is not None)
    assert clipped**0.5 == pytest.approx(1.0, abs=1e-4)


def test_weight_decay_touches_matrices_and_no_vectors() -> None:
    model = linear(torch.float32)
    bias, matrix = model.bias.detach().clone(), model.weight.detach().clone()
    weights = build(model, weight_decay=0.5)
    (model(torch.zeros(1, 4)) * 0).sum().backward()
    weights.step(0.1)
    assert torch.equal(model.bias, bias)
    torch.testing.assert_close(model.weight, matrix * 0.95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_weights_go_on_bitwise_as_if_never_interrupted(dtype: torch.dtype) -> None:
    model = linear(dtype)
    weights = build(model)
    take_step(model, weights, 1e-2)
    saved = {name: tensor.clone() for name, tensor in weights.state().items()}
    take_step(model, weights, 1e-2)
    other = linear(dtype)
    restored = build(other)
    restored.restore(saved)
    take_step(other, restored, 1e-2)
    assert torch.equal(model.weight, other.weight)
    for name, tensor in weights.state().items():
        assert torch.equal(tensor, restored.state()[name]), name


def test_a_checkpoint_of_other_weights_is_refused() -> None:
    weights = build(linear(torch.float32))
    with pytest.raises(TrainingError, match="other weights"):
        weights.restore({"weights/else": torch.zeros(1)})


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(TrainingError, match="no weight"):
        build(linear(torch.float32).requires_grad_(False))


def test_closed_weights_leave_gradients_to_the_parameters_and_to_the_next_training() -> None:
    model = linear(torch.bfloat16)
    with build(model) as first:
        take_step(model, first, 1e-2)
        kept = first.masters["weight"].clone()
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad is not None and model.weight.grad[0, 0].item() == 1.0
    model.zero_grad()
    second = build(model)  # a later stage or phase of training on the same model
    model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    gradient = second.masters["weight"].grad
    assert gradient is not None and gradient[0, 0].item() == 1.0
    assert first.masters["weight"].grad is None and torch.equal(first.masters["weight"], kept)
    second.close()
    second.close()
    assert second.masters["weight"].grad is None
