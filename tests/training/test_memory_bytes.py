"""Bytes as the allocator, the model and the system count them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tunesmith.training import memory_bytes
from tunesmith.training.memory_bytes import (
    available_bytes,
    master_bytes,
    measure_bytes,
    weight_bytes,
)


def stack() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))


def test_measured_bytes_are_those_of_the_allocator() -> None:
    kept: list[torch.Tensor] = []

    def work() -> None:
        passing = torch.ones(1_000_000)
        kept.append(torch.ones(250_000))
        del passing
        torch.ones(500_000)

    found = measure_bytes(torch.device("cpu"), work)
    assert (found.peak, found.kept) == (5_000_000, 1_000_000)


def test_shared_weights_count_once_and_narrow_trainable_ones_have_masters() -> None:
    model = stack().bfloat16()
    model[1].weight = model[0].weight
    narrow = 6 * (64 * 64 + 64) - 64 * 64
    assert weight_bytes(model) == 2 * narrow and master_bytes(model) == 4 * narrow
    assert master_bytes(stack()) == 0


def test_measuring_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    measure_bytes(torch.device("cpu"), lambda: torch.ones(10))
    assert capfd.readouterr() == ("", "")


PEAKS = """
import torch
from tunesmith.training.memory_bytes import forget_peak_resident, peak_resident
torch.ones(30_000_000)
forget_peak_resident()
before = peak_resident()
torch.ones(20_000_000)
print(peak_resident() - before)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak resident size cannot be reset here"
)
def test_a_peak_is_forgotten_and_the_next_one_seen() -> None:
    grown = int(
        subprocess.check_output([sys.executable, "-c", PEAKS])
    )  # a process of its own: nothing freed lies about
    assert 70_000_000 < grown < 90_000_000


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bytes, "_CGROUP", tmp_path)
    unlimited = available_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert available_bytes(torch.device("cpu")) == 3000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 3000
