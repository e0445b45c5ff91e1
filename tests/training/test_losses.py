"""The fast loss and the packed forward equal thirty plain lines, in the loss and in every gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.training.batches import Samples, build_batch
from tunesmith.training.forward import output_head, varlen_forward
from tunesmith.training.losses import LOSSES, CrossEntropy
from tunesmith.training.supervised_rows import supervised_hidden

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
        hidden = supervised_hidden(model, batch, trim=True)
        summed, _ = CrossEntropy()(output_head(model), hidden, batch)
        return summed / CrossEntropy().units(samples, range(len(samples.lengths)))


def plain_weighted_loss(model: Any, samples: Samples) -> torch.Tensor:
    """The sum of w * -log p over the sum of w, sample by sample."""
    total, weight = torch.zeros(()), 0.0
    assert samples.loss_weights is not None
    for index in range(len(samples.lengths)):
        rows = samples.rows(index)
        ids = torch.from_numpy(samples.input_ids[rows].astype("int64"))
        counts = torch.from_numpy(samples.loss_weights[rows] * samples.loss_mask[rows])[1:]
        log_probs = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, :-1].float(), -1)
        total = total - (log_probs.gather(1, ids[1:, None])[:, 0] * counts).sum()
        weight += float(counts.sum())
    return total / weight


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


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weighted_tokens_count_by_their_weights(
    method: str, tiny_model: Any, make_samples: Any, with_adapter: Any
) -> None:
    plain = make_samples([7, 33, 390, 15])
    weights = np.random.default_rng(0).choice([0.0, 0.1, 1.0], size=445).astype(np.float32)
    samples = dataclasses.replace(plain, loss_weights=weights)
    if method == "lora":
        with_adapter(tiny_model)
    expected_loss = plain_weighted_loss(tiny_model, samples)
    expected = gradients(tiny_model, expected_loss)
    found_loss = packed_training_loss(tiny_model, samples)
    found = gradients(tiny_model, found_loss)
    assert found_loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, gradient in expected.items():
        limit = 2e-5 * float(gradient.abs().max())  # fp32, summed in another order
        torch.testing.assert_close(found[name], gradient, atol=limit, rtol=1e-3)


def test_an_unknown_loss_is_named_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="cross_entropi") as caught:
        LOSSES.load("cross_entropi", where="recipe.train.loss")
    assert caught.value.hint == "did you mean 'cross_entropy'?"
    assert caught.value.where == "recipe.train.loss"
