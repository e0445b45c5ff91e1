"""Compiled blocks compute what plain ones do, and are gone afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import as_samples, branching_sequences, build_tiny

from tunesmith.errors import TrainingError
from tunesmith.events import NullSink
from tunesmith.recipe import Train
from tunesmith.training.compiled import compiled_blocks
from tunesmith.training.loop import Trained, train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.step import Pace


def run(folder: Path, *, compiled: bool) -> tuple[Trained, Any]:
    model = build_tiny("llama").requires_grad_(True)
    trained = train(
        model,
        as_samples(branching_sequences()),
        Train(method="full", num_epochs=2, global_batch_size=2),
        learning_rate=1e-3,
        pack_length=64,
        pace=Pace(1, 100, 2, 1, False, True, True, True, compiled),
        checkpoint_dir=folder / "checkpoints",
        metrics_path=folder / "metrics.jsonl",
        events=NullSink(),
        loss=CrossEntropy(),
    )
    return trained, model


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch compiles for a CPU with a C++ compiler, and there is none"
)
def test_a_training_with_compiled_blocks_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", compiled=False)
    torch._dynamo.reset()
    found, model = run(tmp_path / "compiled", compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert [step.loss for step in found.losses] == pytest.approx([step.loss for step in plain.losses], rel=1e-5)
    for path, master in plain.weights.items():
        torch.testing.assert_close(found.weights[path], master, atol=5e-4, rtol=1e-3, msg=path)
    assert all("forward" not in vars(block) for block in model.get_decoder().layers)


def test_without_a_compiler_it_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.training.compiled.shutil.which", lambda _name: None)
    with pytest.raises(TrainingError, match=r"C\+\+ compiler") as caught, compiled_blocks(build_tiny("llama"), True):
        pass
    assert caught.value.where == "recipe.runtime.compile_blocks"
