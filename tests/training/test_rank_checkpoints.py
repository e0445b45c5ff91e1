"""Checkpoints of whole and of spread weights: durable before they have their name, and refused by name where they are another
training's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.model.checkpoint import Checkpoint, checkpoints_in, save_checkpoint
from tunesmith.training.checkpoints import newest_of, save_spread
from tunesmith.training.ranks import AgreedStop, Ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
TENSORS = {
    "weights/up": torch.arange(12.0).reshape(3, 4),
    "exp_avg/up": torch.ones(3, 4),
    "exp_avg_sq/up": torch.zeros(3, 4),
    "step/up": torch.tensor(2.0),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
FILES = {"one file": "tensors.safetensors", "in parts": "shard-00001-model-00001-of-00001.safetensors"}


@pytest.fixture(params=FILES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """(folder with one checkpoint of TENSORS, name of its file)."""
    if request.param == "one file":
        save_checkpoint(tmp_path, Checkpoint(2, dict(TENSORS), {"losses": []}), keep=1)
    else:
        save_spread(tmp_path, 2, dict(TENSORS), {"losses": []}, keep=1, ranks=Ranks())
    return tmp_path, FILES[request.param]


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}


def test_a_checkpoint_whose_tensors_fit_is_read(saved: tuple[Path, str]) -> None:
    found, passed_over = newest_of(saved[0], SHAPES, blank, Ranks())
    assert found is not None and passed_over == [] and found.step == 2
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights/up": (3, 5)}, "weights/up is 3 x 4 there, and 3 x 5 here"),
        ({"exp_avg_sq/up": (2, 4)}, "exp_avg_sq/up is 3 x 4 there, and 2 x 4 here"),
        ({"weights/down": (7,)}, "it has no weights/down, which is 7 here"),
        ({"step/up": None}, "it has step/up, one number, which is not trained here"),
    ],
)
def test_another_shape_is_told_with_file_tensor_and_both_shapes(
    saved: tuple[Path, str], changes: dict[str, tuple[int, ...] | None], said: str
) -> None:
    folder, file = saved
    wanted = {name: shape for name, shape in {**SHAPES, **changes}.items() if shape is not None}
    with pytest.raises(TrainingError, match="the checkpoint is whole, and of another training") as caught:
        newest_of(folder, wanted, blank, Ranks())
    assert said in caught.value.message
    assert "step-000002" in str(caught.value.where)
    assert str(caught.value.where).endswith(file) or "has no" in said
    assert str(folder) in str(caught.value.hint) and [path.name for path in checkpoints_in(folder)] == ["step-000002"]


def test_every_rank_stops_and_the_first_one_says_why(saved: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "from_first", lambda _self, make: make())
    monkeypatch.setattr(Ranks, "gather", lambda _self, value: [value, value])
    with pytest.raises(AgreedStop, match="weights/up is 3 x 4 there"):
        newest_of(saved[0], {**SHAPES, "weights/up": (1,)}, blank, Ranks(1, 2))


def test_parts_are_on_the_disk_before_the_rename(tmp_path: Path, calls: list[str]) -> None:
    for step in (1, 2):
        calls.clear()
        save_spread(tmp_path, step, dict(TENSORS), {"losses": []}, keep=1, ranks=Ranks())
    making, final = tmp_path / ".step-000002.tmp", tmp_path / "step-000002"
    rename = calls.index(f"replace {making} {final}")
    durable = [making / "shards" / FILES["in parts"], making / "shards", making / "state.json", making]
    assert {f"fsync {path}" for path in durable} <= set(calls[:rename]) and calls[rename - 1] == f"fsync {making}"
    assert calls[rename + 1 :] == [f"fsync {tmp_path}", f"rmtree {tmp_path / 'step-000001'}"]
