"""What must not change the weights that come out of a training: how a step is cut into forward passes, how samples lie in
packs, whether activations are kept or beginnings shared, and where it was stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_architectures import as_samples, branching_sequences, build_tiny

from tunesmith.events import Metric, NullSink
from tunesmith.recipe import Train
from tunesmith.training.batches import Samples
from tunesmith.training.forward import varlen_forward
from tunesmith.training.loop import Trained, train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.step import Pace, Stepper, StepResult

pytestmark = pytest.mark.slow

ARCHITECTURES = ["llama", "gemma3", "gpt2", "gpt_bigcode, one key head", "bloom", "pythia"]
_RATE = 1e-3
_PACE: dict[str, Any] = {
    "micro_batch_size": 1,
    "checkpoint_every_steps": 100,
    "keep_checkpoints": 2,
    "log_every_steps": 1,
    "gradient_checkpointing": False,
    "share_prefixes": False,
    "trim_last_block": True,
    "cache_activations": True,
    "compile_blocks": False,
}


class StopAfter(NullSink):
    """Interrupts when a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def emit(self, event: Any) -> None:
        if isinstance(event, Metric) and event.step == self.step:
            raise KeyboardInterrupt


def twelve_samples() -> Samples:
    """Eight of them in two families that share their beginnings."""
    others = [np.random.default_rng(seed).integers(3, 97, 10 + seed).astype(np.int32) for seed in range(2)]
    return as_samples([*branching_sequences(), *(ids[::-1].copy() for ids in branching_sequences()), *others])


def run(name: str, *, folder: Path | None = None, max_steps: int = 2, events: Any = None, **pace: Any) -> Trained:
    """Train every weight of a fresh tiny model; the same folder again resumes."""
    model = build_tiny(name).requires_grad_(True)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        return train(
            model,
            twelve_samples(),
            Train(method="full", num_epochs=3, global_batch_size=2, max_steps=max_steps),
            learning_rate=_RATE,
            pack_length=96,
            pace=Pace(**{**_PACE, **pace}),
            checkpoint_dir=place / "checkpoints",
            metrics_path=place / "metrics.jsonl",
            events=events or NullSink(),
            loss=CrossEntropy(),
        )


@dataclass(frozen=True)
class Step:
    """What a step reports, and the gradient that AdamW would get."""

    result: StepResult
    gradients: dict[str, torch.Tensor]


def step(
    name: str, packs: Sequence[tuple[int, ...]], *, micro_batch_size: int = 1, share_prefixes: bool = False
) -> Step:
    model = build_tiny(name).requires_grad_(True).train()
    pace = Pace(**{**_PACE, "micro_batch_size": micro_batch_size, "share_prefixes": share_prefixes})
    section = Train(method="full", max_grad_norm=1e9)
    stepper = Stepper(model, CrossEntropy(), section, pace, learning_rate=_RATE)
    with varlen_forward(model), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepper.weights, "step", lambda _rate: None)  # AdamW magnifies the last bits of tiny gradients
        result = stepper.take(twelve_samples(), packs, 0, _RATE)
    return Step(result, {path: master.grad for path, master in stepper.weights.masters.items()})


def equal(found: Step, expected: Step) -> None:
    """Counts exactly; loss, norm and every gradient up to what fp32 rounds."""
    for count in ("num_supervised", "num_tokens"):
        assert getattr(found.result, count) == getattr(expected.result, count) > 100
    assert found.result.loss == pytest.approx(expected.result.loss, rel=1e-6)
    assert found.result.grad_norm == pytest.approx(expected.result.grad_norm, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    for path, gradient in expected.gradients.items():
        limit = max(2e-4 * float(gradient.abs().max()), 1e-6 * largest)
        torch.testing.assert_close(found.gradients[path], gradient, atol=limit, rtol=0, msg=path)


EIGHT = ((0, 1), (2,), (3, 4), (5,), (6, 7), (8,), (9, 10), (11,))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eight_packs_at_once_three_by_three_and_one_by_one_are_the_same_step(name: str) -> None:
    together = step(name, EIGHT, micro_batch_size=8)
    for size in (1, 2, 3):
        equal(step(name, EIGHT, micro_batch_size=size), together)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_or_one_sample_a_pack_is_the_same_step(name: str) -> None:
    equal(step(name, [tuple(range(12))]), step(name, [(index,) for index in range(12)]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_beginnings_shared_or_not_are_the_same_step(name: str) -> None:
    expected = step(name, EIGHT)
    for size in (1, 3, 8):
        equal(step(name, EIGHT, micro_batch_size=size, share_prefixes=True), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_order_of_samples_and_of_packs_is_the_same_step(name: str) -> None:
    expected = step(name, ((0, 1, 2), (3, 4), (5, 6, 7, 8)))
    equal(step(name, ((8, 5, 7, 6), (2, 0, 1), (4, 3))), expected)
    equal(step(name, ((7, 1), (0, 8, 3), (2, 4, 6, 5)), micro_batch_size=2), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_kept_or_computed_again_are_the_same_step_bit_by_bit(name: str) -> None:
    kept, again = run(name), run(name, gradient_checkpointing=True)
    assert [row.loss for row in kept.losses] == [row.loss for row in again.losses]
    for path, weight in kept.weights.items():
        assert torch.equal(again.weights[path], weight), path


STEPS = 6


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["llama", "bloom"]),
    stops=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=3).map(sorted),
    every=st.integers(1, 3),
)
def test_stopped_after_any_steps_and_resumed_it_is_the_same_run_bit_by_bit(
    name: str, stops: list[int], every: int
) -> None:
    whole = uninterrupted(name)
    assert len(whole.losses) == STEPS
    with tempfile.TemporaryDirectory() as scratch:
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                run(name, folder=Path(scratch), max_steps=STEPS, events=StopAfter(stop), checkpoint_every_steps=every)
        resumed = run(name, folder=Path(scratch), max_steps=STEPS)
    assert [row.loss for row in resumed.losses] == [row.loss for row in whole.losses]
    for path, weight in whole.weights.items():
        assert torch.equal(resumed.weights[path], weight), path


@lru_cache
def uninterrupted(name: str) -> Trained:
    return run(name, max_steps=STEPS)
