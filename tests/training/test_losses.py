"""The fast loss and the packed forward equal thirty plain lines, in the loss and in every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tunesmith.errors import RecipeError
from tunesmith.training import losses
from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.losses import LOSSES, cross_entropy
from tunesmith.training.probing import hidden_states, output_head, varlen_forward

CPU = torch.device("cpu")


def plain_training_loss(model: Any, samples: Samples) -> torch.Tensor:
    """The reference: one sample at a time, no packing, the model's own forward, full logits, a mean over targets."""
    total, count = torch.zeros(()), 0
    for index in range(len(samples.lengths)):
        rows = samples.rows(index)
        ids = torch.from_numpy(samples.input_ids[rows].astype("int64"))
        mask = torch.from_numpy(samples.loss_mask[rows].astype("bool"))
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        predicted, targets, wanted = logits[:-1], ids[1:], mask[1:]
        log_probabilities = torch.log_softmax(predicted, -1).gather(1, targets[:, None])[:, 0]
        total = total - log_probabilities[wanted].sum()
        count += int(wanted.sum())
    return total / count


def packed_training_loss(model: Any, samples: Samples) -> torch.Tensor:
    batch = build_batch(samples, range(len(samples.lengths)), CPU, share_prefixes=False)
    with varlen_forward(model):
        hidden = hidden_states(model, batch)
        return cross_entropy(hidden[batch.rows], *output_head(model), batch.targets) / len(batch.targets)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_loss_and_every_gradient_equal_the_plain_reference(
    method: str, tiny_model: Any, make_samples: Any, with_adapter: Any
) -> None:
    samples = make_samples([7, 33, 2, 390, 15])
    if method == "lora":
        with_adapter(tiny_model)
    expected_loss = plain_training_loss(tiny_model, samples)
    expected = gradients(tiny_model, expected_loss)
    found_loss = packed_training_loss(tiny_model, samples)
    found = gradients(tiny_model, found_loss)
    assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert found.keys() == expected.keys() and len(found) == (28 if method == "lora" else 20)
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 0, name
        worst = float((found[name] - gradient).abs().max() / gradient.abs().max())
        assert worst < 1e-4, f"{name}: {worst}"


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
    monkeypatch.setitem(losses._LOGITS_BYTES, "cpu", 3 * 4 * 50)  # three rows at once: 3, 3, 3, 1
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


def test_an_unknown_loss_is_named_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="cross_entropi") as caught:
        LOSSES.load("cross_entropi", where="recipe.train.loss")
    assert caught.value.hint == "did you mean 'cross_entropy'?"
    assert caught.value.where == "recipe.train.loss"
