"""Samples become one row without padding; what is wrong with a file of samples is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tunesmith.errors import DataError
from tunesmith.training.batches import Samples, build_batch, load_samples
from tunesmith.training.segments import build_segments

CPU = torch.device("cpu")


def write(path: Path, mask: list[int], lengths: list[int]) -> Path:
    arrays = {
        "input_ids": np.arange(len(mask), dtype=np.int32),
        "loss_mask": np.array(mask, dtype=np.uint8),
        "lengths": np.array(lengths, dtype=np.int64),
    }
    save_file(arrays, str(path))
    return path


def test_a_batch_holds_the_samples_end_to_end_in_order_of_length(tmp_path: Path) -> None:
    samples = load_samples(write(tmp_path / "s", [0, 1, 1, 0, 1, 0, 0, 1, 1], [3, 2, 4]), ["a", "b", "c"])
    batch = build_batch(samples, (2, 0, 1), CPU, share_prefixes=False)
    assert batch.samples == (1, 0, 2)
    assert batch.input_ids.tolist() == [[3, 4, 0, 1, 2, 5, 6, 7, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.segments == build_segments([2, 3, 4])
    assert batch.rows.tolist() == [0, 2, 3, 6, 7]
    assert batch.targets.tolist() == [4, 1, 2, 7, 8]
    assert batch.num_tokens == 9


def test_targets_are_counted_before_any_batch_is_built(make_samples: Any) -> None:
    samples = make_samples([5, 1, 8, 2, 33])
    for indices in ([0], [2, 4], [0, 2, 3, 4]):
        assert int(samples.num_targets[indices].sum()) == len(
            build_batch(samples, indices, CPU, share_prefixes=True).rows
        )


def test_a_supervised_first_token_is_no_target(tmp_path: Path) -> None:
    samples = load_samples(write(tmp_path / "s", [1, 1, 1, 0, 1], [3, 2]), ["a", "b"])
    assert samples.num_targets.tolist() == [2, 1]
    assert build_batch(samples, (0, 1), CPU, share_prefixes=True).targets.tolist() == [4, 1, 2]


def test_no_row_predicts_the_first_token_of_the_next_sample(tmp_path: Path) -> None:
    samples = load_samples(write(tmp_path / "s", [1, 1, 1, 1, 1], [2, 3]), ["a", "b"])
    batch = build_batch(samples, (0, 1), CPU, share_prefixes=False)
    assert batch.rows.tolist() == [0, 2, 3]
    assert batch.targets.tolist() == [1, 3, 4]


def test_a_sample_without_a_target_is_an_error_that_names_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no supervised token, first row the-second"):
        load_samples(write(tmp_path / "s", [0, 1, 0, 0], [2, 2]), ["the-first", "the-second"])


def test_lengths_that_do_not_add_up_are_an_error() -> None:
    ids = np.arange(5)
    with pytest.raises(DataError, match="do not belong to 2 samples of 6 tokens"):
        Samples(ids, ids, np.array([2, 4]), ("a", "b"))


def test_nothing_to_train_on_is_an_error() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(DataError, match="no sample"):
        Samples(nothing, nothing, nothing, ())


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_samples(tmp_path / "s", ["a"])
    assert caught.value.where == str(tmp_path / "s")


def test_samples_whose_weights_are_all_zero_are_named_as_such(tmp_path: Path) -> None:
    arrays = {
        "input_ids": np.arange(4, dtype=np.int32),
        "loss_mask": np.array([0, 1, 0, 1], dtype=np.uint8),
        "lengths": np.array([2, 2], dtype=np.int64),
        "loss_weights": np.array([0, 1, 0, 0], dtype=np.float32),
    }
    save_file(arrays, str(tmp_path / "s"))
    with pytest.raises(DataError, match="1 samples have supervised tokens that all weigh 0, first row the-second"):
        load_samples(tmp_path / "s", ["a", "the-second"])
