"""Weights spread over two ranks over gloo (FSDP2): the steps, weights and checkpoints of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_runs import RankRuns

from tunesmith.errors import RecipeError
from tunesmith.events import NullSink
from tunesmith.model.load import load_model
from tunesmith.stages.spreading import Spreading
from tunesmith.training.sharding import choose_sharding, fixed_bytes

pytestmark = pytest.mark.real

# A constant rate, so that a part of a training is a beginning of it.
SECTION = {"lr_schedule": "constant", "warmup_ratio": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-bf16": {"method": "full", "dtype": "bfloat16"},
    "lora-recomputed": {"method": "lora", "recompute": True},
    "dora-bf16": {"method": "dora", "dtype": "bfloat16"},
}
TWO_TO_ONE, ONE_TO_TWO, TWO_TO_TWO = "two-to-one", "one-to-two", "two-to-two"


@pytest.fixture(scope="module")
def runs(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RankRuns:
    """Every kind alone and on two ranks, and trainings that stop after three steps and go on with other ranks. A step has
    an odd number of packs, so that one of two ranks makes an idle pass."""
    made = RankRuns(tmp_path_factory.mktemp("runs"), base_dir, section=SECTION)
    for name, kind in KINDS.items():
        made.alone(f"{name}-alone", **kind)
    made.alone(ONE_TO_TWO, max_steps=3)
    made.together(
        *(made.spec(f"{name}-spread", **kind, spread=True) for name, kind in KINDS.items()),
        made.spec(TWO_TO_ONE, max_steps=3, spread=True),
        made.spec(ONE_TO_TWO, spread=True),
        made.spec(TWO_TO_TWO, max_steps=3, spread=True),
        made.spec(TWO_TO_TWO, spread=True),
    )
    made.alone(TWO_TO_ONE)
    return made


@pytest.mark.parametrize("name", KINDS)
def test_spread_weights_take_the_steps_of_one_rank(runs: RankRuns, name: str) -> None:
    """The tiny model's embeddings are its head too, so their gradients come from both ends."""
    alone, spread = runs.losses(f"{name}-alone", 1), runs.losses(f"{name}-spread", 2)
    is_exact = "bf16" not in name
    assert len(alone) >= 4 and alone[-1] < alone[0]
    assert spread == pytest.approx(alone, rel=1e-5 if is_exact else 2e-2)
    one, parts = runs.weights(f"{name}-alone", 1), runs.weights(f"{name}-spread", 2)
    assert one.keys() == parts.keys() and not runs.weights(f"{name}-spread", 2, rank=1)
    for key, weight in one.items():
        assert parts[key].dtype == torch.float32
        if is_exact:
            torch.testing.assert_close(parts[key], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "size"), [(TWO_TO_ONE, 1), (ONE_TO_TWO, 2), (TWO_TO_TWO, 2)])
def test_a_training_with_spread_weights_goes_on_with_any_number_of_ranks(runs: RankRuns, name: str, size: int) -> None:
    whole, resumed = runs.losses("full-alone", 1), runs.losses(name, size)
    assert resumed == pytest.approx(whole, rel=1e-5)
    continued = (runs.root / name / "notes-0.txt").read_text()
    assert "training continues after step 2" in continued and "damaged" not in continued
    found = runs.weights(name, size)
    for key, weight in runs.weights("full-alone", 1).items():
        torch.testing.assert_close(found[key], weight, atol=2e-4, rtol=1e-3)


def test_a_checkpoint_of_spread_weights_has_safetensors_of_each_rank_and_nothing_pickled(runs: RankRuns) -> None:
    files = sorted(path for path in (runs.root / "full-spread" / "checkpoints").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    newest = [path for path in files if path.parent.name == "shards"][-2:]
    sizes = [path.stat().st_size for path in newest]
    assert len(newest) == 2 and max(sizes) < 1.2 * min(sizes)


def test_one_process_has_nothing_to_spread(base_dir: Path) -> None:
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    model.requires_grad_(True)
    device = torch.device("cpu")
    with pytest.raises(RecipeError, match="one training process"):
        choose_sharding(True, model, device, quantised=False)
    assert not choose_sharding("auto", model, device, quantised=False)
    assert Spreading("auto", device, quantised=False).settle(model, NullSink()) is None
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert fixed_bytes(model) == pytest.approx(16 * num_weights, rel=1e-3)  # and a few buffers
