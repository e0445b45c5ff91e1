"""Room on the disk, asked for before the first step."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tunesmith.errors import StoreError
from tunesmith.store import check_disk
from tunesmith.training.disk_plan import check_activations_disk, check_training_disk, training_disk_bytes

_Usage = namedtuple("_Usage", "total used free")


def model() -> torch.nn.Module:
    frozen, trainable = torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 50, bias=False)
    frozen.requires_grad_(False)
    return torch.nn.Sequential(frozen, trainable)  # 100 frozen, 500 trainable


def test_bytes_are_the_kept_checkpoints_one_in_the_making_and_the_result() -> None:
    assert training_disk_bytes(1_000, keep_checkpoints=2, result_bytes=7) == 3 * 12 * 1_000 + 7


def test_an_adapter_is_the_trainable_weights_and_a_whole_model_all_of_them(tmp_path: Path) -> None:
    assert check_training_disk(tmp_path, model(), keep_checkpoints=1, whole_model=False) == 2 * 12 * 500 + 4 * 500
    assert check_training_disk(tmp_path, model(), keep_checkpoints=1, whole_model=True) == 2 * 12 * 500 + 4 * 600


def test_too_little_room_is_an_error_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**9, 10**9 - 5_000, 5_000))
    with pytest.raises(StoreError, match=r"may take 20,000 bytes, and 5,000 are free \(15,000 too few\)") as error:
        check_training_disk(tmp_path / "not" / "made" / "yet", model(), keep_checkpoints=2, whole_model=False)
    assert "runtime.keep_checkpoints 2" in str(error.value) and "--root" in str(error.value.hint)


def test_what_frozen_blocks_compute_is_counted_for_each_process_and_beside_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_room(free: int, num_processes: int) -> bool:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**9, 0, free))
        try:
            check_activations_disk(tmp_path, 1_000, num_processes=num_processes, checkpoint_bytes=500)
        except StoreError as error:
            assert ("1,000 bytes for each of 4 processes" in str(error)) == (num_processes == 4)
            return False
        return True

    assert [has_room(free, 1) for free in (1_499, 1_500)] == [False, True]
    assert [has_room(free, 4) for free in (4_499, 4_500)] == [False, True]


def test_exactly_enough_room_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10, 0, 10))
    check_disk(tmp_path, 10, "this")
    with pytest.raises(StoreError, match="1 too few"):
        check_disk(tmp_path, 11, "this")
