"""Two ranks over gloo train as one does; work is shared by what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.training.ranks import Ranks

LENGTHS = [30, 12, 25, 38, 8, 33, 21, 17, 39, 5, 11, 40, 7]


def run_ranks(tiny_dir: Path, folder: Path, size: int, **spec: Any) -> list[float]:
    folder.mkdir(exist_ok=True)
    (folder / "store-0").unlink(missing_ok=True)
    spec = {"model": str(tiny_dir), "out": str(folder), "store": str(folder / "store"), "lengths": LENGTHS, **spec}
    program = [sys.executable, str(Path(__file__).parent / "rank_program.py"), json.dumps(spec)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*program, str(rank), str(size)], env=env, stderr=subprocess.PIPE) for rank in range(size)
    ]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()
    losses = [json.loads((folder / f"losses-{size}-{rank}.json").read_text()) for rank in range(size)]
    assert all(each == losses[0] for each in losses)
    return losses[0]


@pytest.mark.real
def test_two_ranks_take_the_steps_of_one(tiny_dir: Path, tmp_path: Path) -> None:
    alone = run_ranks(tiny_dir, tmp_path / "alone", 1)
    together = run_ranks(tiny_dir, tmp_path / "together", 2)
    assert len(alone) >= 4 and alone[-1] < alone[0]
    assert together == pytest.approx(alone, rel=1e-5)
    one = torch.load(tmp_path / "alone" / "weights-1-0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / "together" / f"weights-2-{n}.pt", weights_only=True) for n in (0, 1))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, atol=2e-4, rtol=1e-3)
    assert (tmp_path / "together" / "metrics-0.jsonl").read_text() and not (
        tmp_path / "together" / "metrics-1.jsonl"
    ).read_text()


@pytest.mark.real
def test_a_training_goes_on_with_another_number_of_ranks(tiny_dir: Path, tmp_path: Path) -> None:
    whole = run_ranks(tiny_dir, tmp_path / "whole", 1)
    started = run_ranks(tiny_dir, tmp_path / "parts", 2, max_steps=3)
    assert (tmp_path / "parts" / "checkpoints").is_dir()
    resumed = run_ranks(tiny_dir, tmp_path / "parts", 1)
    assert started[:2] == pytest.approx(whole[:2], rel=1e-3)  # the schedule's end differs, so only its begin is alike
    assert len(resumed) == len(whole) and resumed[0] == started[0]


def test_packs_are_shared_by_what_they_cost() -> None:
    lengths = np.array([2000, 100, 100, 100, 100, 100, 1000, 900])
    packs = [(0,), (1, 2), (3,), (4,), (5,), (6,), (7,)]
    shares = [Ranks(rank, 2).share(packs, lengths) for rank in range(2)]
    assert sorted(pack for share in shares for pack in share) == sorted(packs)
    costs = [sum((1 + lengths[i] / 4096) * lengths[i] for pack in share for i in pack) for share in shares]
    assert max(costs) / min(costs) < 1.35
    assert Ranks().share(packs, lengths) == packs


def test_work_is_shared_out_by_key_and_every_rank_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are alike stay together: their answers are numbered on."""
    keys = ["a", "b", "a", "c", "d", "c"]
    done: list[dict[int, str]] = []
    asked: list[list[int]] = []

    def work(indices: Sequence[int]) -> list[str]:
        asked.append(list(indices))
        return [keys[index].upper() for index in indices]

    monkeypatch.setattr(Ranks, "gather", lambda self, value: done.append(value) or [*done, value])
    for rank in range(2):
        with contextlib.suppress(KeyError):  # the first one has not heard of the second
            assert Ranks(rank, 2).share_out(keys, work) == ["A", "B", "A", "C", "D", "C"]
    assert asked == [[0, 2, 3, 5], [1, 4]]
    assert Ranks().share_out(keys, work) == ["A", "B", "A", "C", "D", "C"]


@pytest.mark.real
def test_a_rank_without_a_pack_adds_nothing(tiny_dir: Path, tmp_path: Path) -> None:
    alone = run_ranks(tiny_dir, tmp_path / "alone", 1, lengths=[20, 12])  # one pack
    assert run_ranks(tiny_dir, tmp_path / "together", 2, lengths=[20, 12]) == pytest.approx(alone, rel=1e-5)
