"""The last block leaves out rows that no loss reads: same hidden states, same gradients, fewer rows in its MLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_architectures import as_samples, branching_sequences, build_tiny

from tunesmith.training.batches import Batch, build_batch
from tunesmith.training.forward import hidden_states, varlen_forward
from tunesmith.training.last_block import reading_rows
from tunesmith.training.loop import _recompute_activations
from tunesmith.training.supervised_rows import supervised_hidden

CPU = torch.device("cpu")


def a_batch(*, share_prefixes: bool = False) -> Batch:
    samples = as_samples(branching_sequences())
    return build_batch(samples, range(len(samples.lengths)), CPU, share_prefixes=share_prefixes)


def rows_of_last_mlp(model: Any, batch: Batch, *, trim: bool) -> tuple[torch.Tensor, list[int]]:
    """Supervised hidden states, and the rows that the last MLP read."""
    seen: list[int] = []
    hook = (
        model.get_decoder()
        .layers[-1]
        .mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    )
    with varlen_forward(model):
        seen.clear()  # what the proof took
        found = supervised_hidden(model, batch, trim=trim)
    hook.remove()
    return found, seen


@pytest.mark.parametrize("share_prefixes", [False, True], ids=["end to end", "trie"])
def test_only_the_rows_that_are_read_are_computed_and_they_are_the_same(share_prefixes: bool) -> None:
    model, batch = build_tiny("llama"), a_batch(share_prefixes=share_prefixes)
    rows, read = batch.input_ids.shape[1], len(set(batch.rows.tolist()))
    assert read < rows
    whole, seen = rows_of_last_mlp(model, batch, trim=False)
    assert seen == [rows]
    trimmed, seen = rows_of_last_mlp(model, batch, trim=True)
    assert seen == [read]
    assert whole.shape == trimmed.shape == (len(batch.rows), whole.shape[1])
    torch.testing.assert_close(trimmed, whole, atol=1e-6, rtol=1e-5)


def test_every_gradient_is_that_of_the_whole_block() -> None:
    found: list[dict[str, torch.Tensor]] = []
    for trim in (False, True):
        model, batch = build_tiny("llama"), a_batch(share_prefixes=True)
        hidden, _ = rows_of_last_mlp(model, batch, trim=trim)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    whole, trimmed = found
    assert whole.keys() == trimmed.keys() and len(whole) > 15
    for name, gradient in whole.items():
        limit = 1e-5 * float(gradient.abs().max())
        torch.testing.assert_close(trimmed[name], gradient, atol=limit, rtol=0, msg=name)


def test_a_block_of_the_same_parts_and_other_arithmetic_is_left_as_it_is() -> None:
    """Granite's children have Llama's names; it scales what it adds."""
    model, batch = build_tiny("llama"), a_batch()
    block: Any = model.get_decoder().layers[-1]
    plain = type(block).forward

    class Scaled(type(block)):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
            return hidden_states + 0.5 * (plain(self, hidden_states, **options) - hidden_states)

    block.__class__ = Scaled
    with varlen_forward(model), torch.no_grad():
        expected = hidden_states(model, batch)[batch.rows]
        assert torch.equal(supervised_hidden(model, batch, trim=True), expected)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom"])
def test_blocks_of_another_form_are_left_as_they_are(name: str) -> None:
    model, batch = build_tiny(name), a_batch()
    with varlen_forward(model), torch.no_grad():
        expected = hidden_states(model, batch)[batch.rows]
        assert torch.equal(supervised_hidden(model, batch, trim=True), expected)


def test_outside_training_the_block_is_the_models_own() -> None:
    model, batch = build_tiny("llama"), a_batch()
    block: Any = model.get_decoder().layers[-1]
    with varlen_forward(model), torch.no_grad():
        assert "forward" in vars(block)
        with reading_rows(model, batch.rows[:2]) as only_these:
            assert only_these and hidden_states(model, batch).shape[0] == 2
        assert hidden_states(model, batch).shape[0] == batch.input_ids.shape[1]
    assert "forward" not in vars(block)


def test_a_block_whose_activations_are_recomputed_is_whole_and_computed_twice() -> None:
    model = build_tiny("llama").train()
    _recompute_activations(model, True)
    batch = a_batch()
    seen: list[int] = []
    last: Any = model.get_decoder().layers[-1]
    last.mlp.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    with varlen_forward(model):
        supervised_hidden(model, batch, trim=True).sum().backward()
    assert seen == [batch.input_ids.shape[1]] * 2


def test_the_proof_draws_no_random_number_and_leaves_the_model_training() -> None:
    model = build_tiny("llama").train()
    before = torch.get_rng_state()
    with varlen_forward(model):
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training for module in model.modules())
