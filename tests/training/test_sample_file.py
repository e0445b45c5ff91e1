"""Samples written one by one are the file that safetensors writes at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from tunesmith.errors import StoreError
from tunesmith.training.sample_file import SampleWriter


@pytest.mark.parametrize("lengths", [[3, 1, 700], [1], []])
def test_the_bytes_are_those_of_safetensors(tmp_path: Path, lengths: list[int]):
    rng = np.random.default_rng(1)
    samples = [
        (rng.integers(0, 2**31 - 1, n, np.int32), rng.integers(0, 2, n).astype(bool), rng.integers(-1, 9, n, np.int16))
        for n in lengths
    ]
    with SampleWriter(tmp_path / "a.safetensors", tmp_path / "scratch") as writer:
        for input_ids, loss_mask, owner in samples:
            writer.add(input_ids, loss_mask, owner)
        assert not (tmp_path / "a.safetensors").exists()
        writer.finish()
    empty = np.zeros(0)
    expected = {
        "input_ids": np.concatenate([empty, *(ids for ids, _, _ in samples)]).astype(np.int32),
        "loss_mask": np.concatenate([empty, *(mask for _, mask, _ in samples)]).astype(np.uint8),
        "owner": np.concatenate([empty, *(owner for _, _, owner in samples)]).astype(np.int16),
        "lengths": np.array(lengths, np.int64),
    }
    assert (tmp_path / "a.safetensors").read_bytes() == save(expected)
    assert load_file(tmp_path / "a.safetensors")["lengths"].tolist() == lengths
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("length", [10, 1 << 20])
def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path, length: int):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "input_ids").symlink_to("/dev/full")
    sample = np.zeros(length, np.int32), np.zeros(length, np.bool_), np.zeros(length, np.int16)
    with (
        pytest.raises(StoreError, match="no room to write"),
        SampleWriter(tmp_path / "a.safetensors", scratch) as writer,
    ):
        writer.add(*sample)
        writer.finish()
    assert list(tmp_path.iterdir()) == []
