"""The output head equals torch's full logits, in values and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tunesmith.training import head as head_module
from tunesmith.training.head import Head


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor):
    return Head(weight, bias).negative_log_likelihood(hidden, targets)


def test_bias_and_weight_gradients_equal_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((11, 8), (50, 8), (50,))
    )
    targets = torch.randint(0, 50, (11,), generator=generator)
    ours = torch.autograd.grad(cross_entropy(hidden, weight, bias, targets) * 0.7, (hidden, weight, bias))
    reference = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum") * 0.7
    for found, expected in zip(ours, torch.autograd.grad(reference, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((10, 8), (50, 8)))
    targets = torch.arange(10)
    whole = cross_entropy(hidden, weight, None, targets)
    whole_grads = torch.autograd.grad(whole, (hidden, weight))
    monkeypatch.setitem(head_module._LOGITS_BYTES, "cpu", 3 * 4 * 50)  # three rows at once: 3, 3, 3, 1
    chunked = cross_entropy(hidden, weight, None, targets)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    for found, expected in zip(torch.autograd.grad(chunked, (hidden, weight)), whole_grads, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_no_rows_give_a_zero_that_is_tied_to_the_graph() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = cross_entropy(hidden[:0], torch.randn(50, 8), None, torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None and not hidden.grad.any()


def test_huge_logits_stay_exact() -> None:
    hidden = torch.tensor([[3000.0], [-3000.0]])
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    loss = cross_entropy(hidden, weight, None, torch.tensor([1, 1]))
    assert loss.item() == 6000.0  # the first row is certain of 0, the second of 1


def leaves() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in ((11, 8), (50, 8), (50,)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_their_gradients_equal_torchs(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head_module._LOGITS_BYTES, "cpu", 4 * 4 * 50)  # four rows at once
    hidden, weight, bias = leaves()
    targets = torch.arange(11)
    found = Head(weight, bias).log_probs(hidden, targets, temperature)
    expected = torch.log_softmax(F.linear(hidden, weight, bias) / temperature, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    factors = torch.linspace(-1, 2, 11)
    ours = torch.autograd.grad((torch.exp(found) * factors).sum(), (hidden, weight, bias))
    theirs = torch.autograd.grad((torch.exp(expected) * factors).sum(), (hidden, weight, bias))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_and_their_gradients_equal_torchs(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module._LOGITS_BYTES, "cpu", 4 * 4 * 50)  # four rows at once
    hidden, weight, bias = leaves()
    found = Head(weight, bias).entropies(hidden, temperature)
    expected = torch.distributions.Categorical(logits=F.linear(hidden, weight, bias) / temperature).entropy()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    factors = torch.linspace(-1, 2, 11)
    ours = torch.autograd.grad((found * factors).sum(), (hidden, weight, bias))
    theirs = torch.autograd.grad((expected * factors).sum(), (hidden, weight, bias))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert Head(weight, bias).entropies(hidden[:0], 1.0).shape == (0,)


def test_row_weights_scale_what_a_row_counts() -> None:
    hidden, weight, bias = leaves()
    targets, weights = torch.arange(11), torch.linspace(0, 2, 11)
    head = Head(weight, bias)
    found = torch.autograd.grad(head.negative_log_likelihood(hidden, targets, weights), (hidden, weight, bias))
    expected = torch.autograd.grad(-(head.log_probs(hidden, targets, 1.0) * weights).sum(), (hidden, weight, bias))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_frozen_head_forms_the_gradient_of_hidden_states_alone() -> None:
    hidden, weight, bias = leaves()
    head = Head(weight, bias).detach()
    head.log_probs(hidden, torch.arange(11), 1.0).sum().backward()
    assert hidden.grad is not None and weight.grad is None and bias.grad is None
