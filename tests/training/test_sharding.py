"""Weights spread over two ranks over gloo (FSDP2): the steps, weights and checkpoints of one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_program
import torch
from test_ranks import LENGTHS

from tunesmith.errors import RecipeError
from tunesmith.events import NullSink
from tunesmith.model.load import load_model
from tunesmith.stages.spreading import Spreading
from tunesmith.training.sharding import choose_sharding, fixed_bytes

pytestmark = pytest.mark.real

# An odd number of packs a step, so that one rank makes an idle pass; a constant rate, so that a part is a beginning.
COMMON: dict[str, Any] = {"lengths": LENGTHS, "section": {"lr_schedule": "constant", "warmup_ratio": 0.0}}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-bf16": {"method": "full", "dtype": "bfloat16"},
    "lora-recomputed": {"method": "lora", "recompute": True},
    "dora-bf16": {"method": "dora", "dtype": "bfloat16"},
}
TWO_TO_ONE, ONE_TO_TWO, TWO_TO_TWO = "two-to-one", "one-to-two", "two-to-two"


@pytest.fixture(scope="module")
def runs(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind alone and on two ranks, and trainings that stop after three steps and go on with other ranks.

    Two processes do all that needs two ranks, one after another; what needs one runs in this one.
    """
    root = tmp_path_factory.mktemp("runs")

    def spec(folder: str, **options: Any) -> dict[str, Any]:
        (root / folder).mkdir(exist_ok=True)
        return {**COMMON, "model": str(tiny_dir), "out": str(root / folder), "store": str(root / "store"), **options}

    for name, kind in KINDS.items():
        rank_program.main(spec(f"{name}-alone", **kind), 0, 1)
    rank_program.main(spec(ONE_TO_TWO, max_steps=3), 0, 1)
    together = [spec(f"{name}-spread", **kind, spread=True) for name, kind in KINDS.items()]
    together.append(spec(TWO_TO_ONE, max_steps=3, spread=True))
    together.append(spec(ONE_TO_TWO, spread=True))
    together += [spec(TWO_TO_TWO, max_steps=3, spread=True), spec(TWO_TO_TWO, spread=True)]
    program = [sys.executable, str(Path(rank_program.__file__)), json.dumps(together)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*program, str(rank), "2"], env=env, stderr=subprocess.PIPE) for rank in range(2)]
    for process in started:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors.decode()
    rank_program.main(spec(TWO_TO_ONE), 0, 1)
    return root


def losses(folder: Path, size: int) -> list[float]:
    return json.loads((folder / f"losses-{size}-0.json").read_text())


def weights(folder: Path, size: int, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"weights-{size}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", KINDS)
def test_spread_weights_take_the_steps_of_one_rank(runs: Path, name: str) -> None:
    """The tiny model's embeddings are its head too, so their gradients come from both ends."""
    alone, spread = losses(runs / f"{name}-alone", 1), losses(runs / f"{name}-spread", 2)
    is_exact = "bf16" not in name
    assert len(alone) >= 4 and alone[-1] < alone[0]
    assert spread == pytest.approx(alone, rel=1e-5 if is_exact else 2e-2)
    one, parts = weights(runs / f"{name}-alone", 1), weights(runs / f"{name}-spread", 2)
    assert one.keys() == parts.keys() and not weights(runs / f"{name}-spread", 2, rank=1)
    for key, weight in one.items():
        assert parts[key].dtype == torch.float32
        if is_exact:
            torch.testing.assert_close(parts[key], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "size"), [(TWO_TO_ONE, 1), (ONE_TO_TWO, 2), (TWO_TO_TWO, 2)])
def test_a_training_with_spread_weights_goes_on_with_any_number_of_ranks(runs: Path, name: str, size: int) -> None:
    whole, resumed = losses(runs / "full-alone", 1), losses(runs / name, size)
    assert resumed == pytest.approx(whole, rel=1e-5)
    continued = (runs / name / "notes-0.txt").read_text()
    assert "training continues after step 2" in continued and "damaged" not in continued
    for key, weight in weights(runs / "full-alone", 1).items():
        torch.testing.assert_close(weights(runs / name, size)[key], weight, atol=2e-4, rtol=1e-3)


def test_a_checkpoint_of_spread_weights_has_safetensors_of_each_rank_and_nothing_pickled(runs: Path) -> None:
    files = sorted(path for path in (runs / "full-spread" / "checkpoints").rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    newest = [path for path in files if path.parent.name == "shards"][-2:]
    sizes = [path.stat().st_size for path in newest]
    assert len(newest) == 2 and max(sizes) < 1.2 * min(sizes)


def test_one_process_has_nothing_to_spread(tiny_dir: Path) -> None:
    model = load_model(tiny_dir, device="cpu", dtype=torch.float32)
    model.requires_grad_(True)
    device = torch.device("cpu")
    with pytest.raises(RecipeError, match="one training process"):
        choose_sharding(True, model, device, quantised=False)
    assert not choose_sharding("auto", model, device, quantised=False)
    assert Spreading("auto", device, quantised=False).settle(model, NullSink()) is None
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    assert fixed_bytes(model) == pytest.approx(16 * num_weights, rel=1e-3)  # and a few buffers
