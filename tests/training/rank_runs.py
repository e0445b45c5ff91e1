"""Trainings of rank_program.py, in this process or on two ranks, and what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import rank_program
import torch

LENGTHS = [30, 12, 25, 38, 8, 33, 21, 17, 39, 5, 11, 40, 7]


class RankRuns:
    """A folder below `root` for every training."""

    def __init__(self, root: Path, model: Path, **common: Any) -> None:
        self.root = root
        self._common = {"lengths": LENGTHS, "model": str(model), "store": str(root / "store"), **common}

    def spec(self, folder: str, **options: Any) -> dict[str, Any]:
        (self.root / folder).mkdir(exist_ok=True)
        return {**self._common, "out": str(self.root / folder), **options}

    def alone(self, folder: str, **options: Any) -> None:
        rank_program.main(self.spec(folder, **options), 0, 1)

    def together(self, *specs: dict[str, Any]) -> None:
        """One training after another, all in the same two processes: starting them takes longer than the steps."""
        program = [sys.executable, str(Path(rank_program.__file__)), json.dumps(specs)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [subprocess.Popen([*program, str(rank), "2"], env=env, stderr=subprocess.PIPE) for rank in range(2)]
        for process in started:
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors.decode()

    def losses(self, folder: str, size: int) -> list[float]:
        """Every rank has the same."""
        found = [json.loads((self.root / folder / f"losses-{size}-{rank}.json").read_text()) for rank in range(size)]
        assert all(each == found[0] for each in found)
        return found[0]

    def weights(self, folder: str, size: int, rank: int = 0) -> dict[str, torch.Tensor]:
        return torch.load(self.root / folder / f"weights-{size}-{rank}.pt", weights_only=True)
