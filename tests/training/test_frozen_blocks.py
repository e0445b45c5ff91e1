"""Blocks that never change are computed once per token; what later epochs learn is what they would have learnt anyway."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_architectures import as_samples, branching_sequences, build_tiny

from tunesmith.errors import StoreError
from tunesmith.events import CallbackSink, Note
from tunesmith.model.freezing import thaw
from tunesmith.recipe import Train
from tunesmith.training import loop
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.forward import hidden_states, varlen_forward
from tunesmith.training.frozen_blocks import FrozenBlocks, can_stand_apart
from tunesmith.training.loop import Trained, train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.step import Pace
from tunesmith.training.supervised_rows import supervised_hidden

CPU = torch.device("cpu")


def samples() -> Samples:
    return as_samples([*branching_sequences(), *(ids[::-1].copy() for ids in branching_sequences())])


def batch_of(indices: Sequence[int], *, share_prefixes: bool = True) -> Batch:
    return build_batch(samples(), indices, CPU, share_prefixes=share_prefixes)


def half_frozen(name: str = "llama") -> Any:
    """Two blocks, of which the upper one is trained."""
    model = build_tiny(name)
    thaw(model, 1, "auto")
    return model


def counted(model: Any) -> list[int]:
    """Rows that the lowest block reads, a number for each of its forward passes."""
    seen: list[int] = []
    block = model.get_decoder().layers[0]
    block.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    return seen


def test_a_sample_that_was_seen_is_taken_from_the_store_in_whatever_pack_it_comes(tmp_path: Path) -> None:
    model = half_frozen()
    seen = counted(model)
    with varlen_forward(model):
        below = FrozenBlocks(model, samples(), tmp_path)
        first = [batch_of([0, 1, 2]), batch_of([3, 4, 5])]
        for batch in first:
            below.hidden(batch)
        assert seen == [batch.input_ids.shape[1] for batch in first]
        for again in (batch_of([5, 0, 3]), batch_of([4, 1], share_prefixes=False)):
            found = supervised_hidden(model, again, trim=True, below=below)
            assert len(seen) == 2  # nothing was computed below
            expected = hidden_states(model, again)[again.rows]
            seen.pop()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_rows_are_kept_bit_by_bit_in_the_dtype_they_have(tmp_path: Path) -> None:
    model = half_frozen().to(torch.bfloat16)
    with varlen_forward(model):
        below = FrozenBlocks(model, samples(), tmp_path)
        batch = batch_of([0, 1, 2])
        computed = below.hidden(batch)
        assert computed.dtype == torch.bfloat16 and torch.equal(below.hidden(batch), computed)
        assert torch.equal(below.above(batch), hidden_states(model, batch))
    assert below.num_bytes == len(samples().input_ids) * computed.shape[-1] * 2


def test_the_store_leaves_no_file_behind(tmp_path: Path) -> None:
    model = half_frozen()
    with varlen_forward(model):
        below = FrozenBlocks(model, samples(), tmp_path)
        below.hidden(batch_of([0]))
        assert list(tmp_path.iterdir()) == []


def run(tmp_path: Path, notes: list[str], *, cache: bool, model: Any, **changes: Any) -> Trained:
    section: dict[str, Any] = {"method": "full", "num_epochs": 4, "global_batch_size": 2, "trainable_layers": 1}
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    return train(
        model,
        samples(),
        Train(**{**section, **changes}),
        learning_rate=1e-3,
        pack_length=96,
        pace=Pace(1, 100, 2, 1, False, True, True, cache, False),
        checkpoint_dir=folder / "checkpoints",
        metrics_path=folder / "metrics.jsonl",
        events=CallbackSink(lambda event: notes.append(event.message) if isinstance(event, Note) else None),
        loss=CrossEntropy(),
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "bloom", "gemma3"])
def test_a_training_ends_at_the_same_weights_with_and_without_it(name: str, tmp_path: Path) -> None:
    notes: list[str] = []
    plain = run(tmp_path, notes, cache=False, model=half_frozen(name))
    assert not any("never change" in note for note in notes)
    kept = run(tmp_path, notes, cache=True, model=half_frozen(name))
    np.testing.assert_allclose([s.loss for s in kept.losses], [s.loss for s in plain.losses], rtol=1e-4)
    assert len(kept.losses) > 4
    for path, master in plain.weights.items():
        torch.testing.assert_close(kept.weights[path], master, atol=5e-4, rtol=1e-3, msg=path)


def test_the_lowest_blocks_run_once_per_sample_over_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(loop, "can_stand_apart", lambda *_: True)
    passes: list[int] = []
    for cache in (False, True):
        model = half_frozen()
        monkeypatch.setattr(loop._Training, "_plan_memory", lambda _self: None)
        seen = counted(model)
        run(tmp_path, notes, cache=cache, model=model)
        passes.append(sum(seen))
    once, whole = passes[1], passes[0]
    assert once <= len(samples().input_ids) and whole > 3 * once
    assert any("the lowest 1 blocks never change" in note for note in notes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trainable_layers": "all"}, "nothing is frozen"),
        ({"num_epochs": 1}, "no epoch comes again"),
        ({"trainable_layers": 1, "train_embeddings": True}, "the embeddings move"),
    ],
)
def test_it_is_left_alone_where_it_saves_nothing_or_would_be_wrong(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    model = build_tiny("llama")
    section = Train(**{"method": "full", "num_epochs": 4, **changes})
    thaw(model, section.trainable_layers, section.train_embeddings)
    notes: list[str] = []
    run(tmp_path, notes, cache=True, model=model, **changes)
    assert not any("never change" in note for note in notes), why


def test_blocks_with_dropout_are_never_kept() -> None:
    model = half_frozen()
    with varlen_forward(model):
        assert can_stand_apart(model, samples())
        model.get_decoder().layers[0].self_attn.attention_dropout = 0.1
        assert not can_stand_apart(model, samples())


@pytest.mark.parametrize("trim", [False, True])
def test_where_a_head_alone_is_trained_every_block_is_kept(trim: bool, tmp_path: Path) -> None:
    model = build_tiny("llama").requires_grad_(False)
    with varlen_forward(model):
        assert can_stand_apart(model, samples())
        below = FrozenBlocks(model, samples(), tmp_path)
        seen = counted(model)
        for indices in ([0, 1, 2], [2, 0]):
            batch = batch_of(indices)
            seen.clear()
            found = supervised_hidden(model, batch, trim=trim, below=below)
            assert bool(seen) == (len(indices) == 3)  # samples that are known run through no block
            torch.testing.assert_close(found, hidden_states(model, batch)[batch.rows], atol=1e-6, rtol=1e-5)


def test_a_model_that_adds_positions_to_what_it_is_given_is_not_cut() -> None:
    model = half_frozen("gpt2")
    with varlen_forward(model):
        assert not can_stand_apart(model, samples())


def test_a_disk_without_room_is_a_warning_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StoreError("no room")

    notes: list[str] = []
    monkeypatch.setattr("tunesmith.training.disk_plan.check_disk", full)
    assert len(run(tmp_path, notes, cache=True, model=half_frozen()).losses) > 4
    assert any("frozen blocks are computed in every epoch: no room" in note for note in notes)
