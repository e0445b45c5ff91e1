"""Checkpoints are whole or not there, and a damaged one is passed over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.errors import StoreError
from tunesmith.model.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint


def build(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3,), float(step)), "h": torch.tensor([step], dtype=torch.bfloat16)}
    return Checkpoint(step, tensors, {"losses": [step * 0.1], "name": "é"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build(7), keep=2)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None and damaged == []
    assert found.step == 7 and found.state == {"losses": [0.7000000000000001], "name": "é"}
    assert torch.equal(found.tensors["w"], torch.full((3,), 7.0)) and found.tensors["h"].dtype == torch.bfloat16


def test_the_newest_ones_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        save_checkpoint(tmp_path, build(step), keep=2)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1_000_000


def test_nothing_saved_yet_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("damage", ["tensors cut", "state cut", "no state", "tensors changed"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, build(1), keep=5)
    path = save_checkpoint(tmp_path, build(2), keep=5)
    tensors, state = path / "tensors.safetensors", path / "state.json"
    if damage == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "state cut":
        state.write_bytes(state.read_bytes()[:20])
    elif damage == "no state":
        state.unlink()
    else:
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    found, damaged = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert len(damaged) == 1 and damaged[0].startswith("checkpoint step-000002 is damaged")


def test_what_a_kill_left_half_made_is_no_checkpoint_and_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".step-000003.tmp").mkdir()
    (tmp_path / ".step-000003.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == (None, [])
    save_checkpoint(tmp_path, build(3), keep=1)
    assert names(tmp_path) == ["step-000003"]


def test_a_step_saved_twice_holds_the_second_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build(4), keep=1)
    save_checkpoint(tmp_path, Checkpoint(4, {"w": torch.zeros(1)}, {"again": True}), keep=1)
    found, _ = newest_checkpoint(tmp_path)
    assert found is not None and found.state == {"again": True} and torch.equal(found.tensors["w"], torch.zeros(1))


def test_a_disk_that_refuses_is_said_and_earlier_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, build(1), keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no room to write"):
        save_checkpoint(tmp_path, build(2), keep=1)
    assert names(tmp_path) == ["step-000001"]


def test_all_is_on_the_disk_before_the_rename_and_the_rename_before_an_older_one_goes(
    tmp_path: Path, calls: list[str]
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save_checkpoint(folder, build(1), keep=1)
    assert calls[:2] == [f"fsync {tmp_path}", f"fsync {tmp_path / 'run'}"]
    calls.clear()
    save_checkpoint(folder, build(2), keep=1)
    making, final = folder / ".step-000002.tmp", folder / "step-000002"
    *inside, rename, after, delete = calls
    assert sorted(inside[:2]) == [f"fsync {making / 'state.json'}", f"fsync {making / 'tensors.safetensors'}"]
    assert inside[2:] == [f"fsync {making}"]
    assert (rename, after) == (f"replace {making} {final}", f"fsync {folder}")
    assert delete == f"rmtree {folder / 'step-000001'}"


def test_what_was_passed_over_does_not_take_the_place_of_what_is_whole(tmp_path: Path) -> None:
    for step in (2, 5, 6):
        save_checkpoint(tmp_path, build(step), keep=3)
    (tmp_path / "step-000005" / "state.json").unlink()
    (tmp_path / "step-000006" / "state.json").unlink()
    save_checkpoint(tmp_path, build(3), keep=2)
    assert names(tmp_path) == ["step-000002", "step-000003"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGXFSZ")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_kill_at_any_of_a_hundred_points_leaves_the_previous_checkpoint_or_the_new_one(
    tmp_path: Path, method: str
) -> None:
    """Weights and optimiser state of a training, taken up by a training that is begun anew."""
    program = Path(__file__).with_name("killed_checkpoint.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), method],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["points"] >= 100 and found["previous"] + found["new"] == found["points"]
    assert found["calls"] >= 15 and found["previous"] > 80 and found["new"] > 5
