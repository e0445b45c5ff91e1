"""The choice of arithmetic follows the recipe, else the measurement."""

from __future__ import annotations

import pytest
import torch

from tunesmith.training import precision
from tunesmith.training.precision import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("bf16", "fp32", "expected"), [(400, 200, "bf16"), (100, 200, "fp32"), (205, 200, "fp32")])
def test_auto_takes_bf16_only_where_it_is_clearly_faster(
    bf16: float, fp32: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(precision, "measure_matmul", lambda dtype, width, inner: speeds[dtype])
    chosen = choose_precision("auto", CPU, 576, 1536)
    assert chosen.dtype == (torch.bfloat16 if expected == "bf16" else torch.float32)
    assert chosen.reason.startswith(expected) and f"{bf16} GFLOP/s" in chosen.reason


@pytest.mark.parametrize(("number", "words"), [(1, "on 1 thread"), (3, "on 3 threads")])
def test_the_reason_counts_threads(number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_matmul", lambda dtype, width, inner: 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert choose_precision("auto", CPU, 64, 64).reason.endswith(words)


def test_what_the_recipe_asks_for_is_taken() -> None:
    assert choose_precision("bf16", CPU, 64, 64).dtype == torch.bfloat16
    assert choose_precision("fp32", CPU, 64, 64).dtype == torch.float32


def test_the_measurement_is_a_speed() -> None:
    assert 0.01 < precision.measure_matmul(torch.float32, 64, 128) < 1e6
