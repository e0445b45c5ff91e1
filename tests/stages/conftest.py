"""Fixtures of the stages: a base model of two blocks, and runs of a tiny recipe that begin alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TinyRun


@pytest.fixture
def start(tmp_path: Path, base_dir: Path, sink: Any, shelf: Path) -> TinyRun:
    return TinyRun(tmp_path, base_dir, sink, shelf)
