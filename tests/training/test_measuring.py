"""The held-out loss is the plain cross-entropy of each sample alone, however many go through together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_models import build_model
from tunesmith.model.load import load_model
from tunesmith.training import measuring
from tunesmith.training.batches import Samples
from tunesmith.training.measuring import TokenLoss, measure_losses


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_loss_is_the_cross_entropy_of_the_sample_alone(
    kind: str, tmp_path: Path, make_samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_ROWS_AT_ONCE", 100)  # several forward passes
    model = load_model(build_model(tmp_path, kind), device="cpu", dtype=torch.float32)
    samples = make_samples([30, 61, 12, 90, 30, 7])
    samples.input_ids[samples.rows(4)][:20] = samples.input_ids[samples.rows(0)][:20]  # a shared beginning
    seen: dict[int, TokenLoss] = {}
    losses = measure_losses(model, samples, seen.__setitem__)
    assert [seen[index] for index in range(6)] == losses
    for index, loss in enumerate(losses):
        place = samples.rows(index)
        ids = torch.from_numpy(samples.input_ids[place].astype("int64"))
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1].log_softmax(-1)
        wanted = np.flatnonzero(samples.loss_mask[place][1:])
        expected = -float(logits[wanted, ids[wanted + 1]].sum())
        assert loss.num_tokens == len(wanted) > 0
        assert loss.total == pytest.approx(expected, rel=1e-4)


def test_a_sample_without_targets_has_no_loss_and_disturbs_nobody(tiny_model: Any) -> None:
    ids = np.arange(3, 13, dtype=np.int32)
    samples = Samples(ids, np.array([0, 0, 0, 0, 1, 1] + [0] * 4, dtype=np.uint8), np.array([6, 4]), ("a", "b"))
    first, second = measure_losses(tiny_model, samples, lambda index, loss: None)
    assert (second.total, second.num_tokens) == (0.0, 0)
    assert first.num_tokens == 2 and first.total > 0


def test_the_model_is_left_as_it_was(tiny_model: Any, make_samples: Any) -> None:
    before = tiny_model.config._attn_implementation
    measure_losses(tiny_model, make_samples([8, 5]), lambda index, loss: None)
    assert tiny_model.config._attn_implementation == before
    assert not tiny_model.training


def test_samples_that_begin_alike_are_measured_together(tiny_model: Any, make_samples: Any, monkeypatch: Any) -> None:
    samples = make_samples([60, 60, 60, 60])
    first = samples.input_ids[samples.rows(0)]
    for index in (1, 2):
        samples.input_ids[samples.rows(index)][:50] = first[:50]
    monkeypatch.setattr(measuring, "_ROWS_AT_ONCE", 80)  # one whole sample, and two ends of ten tokens
    passes: list[list[int]] = []
    build = measuring.build_batch

    def watched(samples: Samples, indices: list[int], *rest: Any, **options: Any) -> Any:
        batch = build(samples, indices, *rest, **options)
        passes.append([*indices, batch.input_ids.shape[1]])
        return batch

    monkeypatch.setattr(measuring, "build_batch", watched)
    measure_losses(tiny_model, samples, lambda index, loss: None)
    assert passes == [[0, 1, 2, 80], [3, 60]]
