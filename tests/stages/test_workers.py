"""Ingest, curate and tokenize give the same bytes whoever does the work: this process, two others, or Ray."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from shelf import ShelfStore
from tunesmith.data import rows as rows_module
from tunesmith.data.readers import containers
from tunesmith.events import Progress
from tunesmith.hashing import digest_file
from tunesmith.pipeline import execute
from tunesmith.resolve import load_recipe
from tunesmith.store import Store

pytestmark = pytest.mark.slow

KINDS = ["runtime.num_workers=2", pytest.param("runtime.workers=ray", marks=pytest.mark.real)]
RECIPE = """
name: many
base_model: smollm2-135m
ingest:
  files: [rows.jsonl, table.csv]
  system_prompt: Be brief.
  test_fraction: 0.1
curate:
  blacklist: [forbidden]
  filters:
    - {name: length, of: prompt, min_words: 3}
    - {name: pii, action: mask}
    - {name: exact, of: reply}
    - {name: minhash}
"""


class Quiet:
    def emit(self, event: Any) -> None:
        pass


class KillAWorker:
    """Kills a worker process at the first progress of a stage's work."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.killed = 0

    def emit(self, event: Any) -> None:
        if self.killed or not isinstance(event, Progress) or event.task != self.task or event.done < 200:
            return
        for child in psutil.Process().children(recursive=True):
            if "tunesmith.workers.process" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                self.killed = child.pid
                return


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe over 1,000 rows with every kind of fault, in pieces of 50 rows."""
    monkeypatch.setattr(rows_module, "ROWS_PER_SPAN", 50)
    monkeypatch.setattr(containers, "_ROWS_PER_BATCH", 40)
    rng = random.Random(5)
    words = [f"word{n}" for n in range(400)]
    lines: list[str] = []
    for number in range(900):
        row = {"instruction": " ".join(rng.choices(words, k=9)), "output": " ".join(rng.choices(words, k=12))}
        match number % 30:
            case 3:
                row = json.loads(rng.choice(lines))
            case 5:
                row["instruction"] += " forbidden"
            case 7:
                row["output"] += " write to ann@example.com"
            case 9:
                row = {**json.loads(rng.choice(lines)), "output": "another reply"}
            case 11:
                row["output"] = 7  # type: ignore[assignment]
            case 13:
                row["instruction"] = "too short"
            case 15:
                row["split"] = "test"
        lines.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n{broken\n")
    table = "".join(f"what is {n} plus {rng.choice(words)},it is {n}\n" for n in range(100))
    (tmp_path / "table.csv").write_text("question,answer\n" + table)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made, for the tests that compare with it."""
    return tmp_path_factory.mktemp("kept")


def digests(project: Path, until: str, *overrides: str, kept: Path | None = None, events: Any = None) -> dict[str, str]:
    store = ShelfStore(project / "here", kept) if kept else Store(project / "there")
    run = execute(load_recipe(project, list(overrides)), store, events or Quiet(), until)
    artifacts = run.artifacts()
    assert "curate" in artifacts
    counts = artifacts["curate"].manifest.counts
    assert counts["rows_in"] == sum(number for name, number in counts.items() if name != "rows_in")
    return {
        f"{stage}/{name}": digest_file(artifact.file(name))
        for stage, artifact in artifacts.items()
        for name in artifact.manifest.files
        if stage != "base_model"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_do_not_depend_on_who_works(project: Path, kept: Path, kind: str):
    here = digests(project, "curate", "runtime.num_workers=1", kept=kept)
    assert digests(project, "curate", kind, "runtime.num_workers=2") == here
    excluded = (project / "here").glob("artifacts/curate-*/excluded.jsonl")
    reasons = {json.loads(line)["reason"] for path in excluded for line in path.read_text().splitlines()}
    assert reasons >= {"blacklist", "exact", "conflicting_reply", "word_length"}


@pytest.mark.real
def test_samples_do_not_depend_on_who_works(project: Path, kept: Path):
    here = digests(project, "tokenize", "runtime.num_workers=1", "tokenize.write_text=true", kept=kept)
    there = digests(project, "tokenize", "runtime.num_workers=2", "tokenize.write_text=true")
    assert there == here
    assert {"tokenize/samples.safetensors", "tokenize/tokens.test.jsonl"} <= set(here)


@pytest.mark.parametrize("task", ["read", "check"])
def test_a_worker_that_is_killed_mid_run_loses_nothing(project: Path, kept: Path, task: str):
    here = digests(project, "curate", "runtime.num_workers=1", kept=kept)
    killer = KillAWorker(task)
    assert digests(project, "curate", "runtime.num_workers=2", events=killer) == here
    assert killer.killed


@pytest.mark.real
def test_two_machines_give_the_bytes_of_one_process(project: Path, kept: Path, monkeypatch: pytest.MonkeyPatch):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    here = digests(project, "curate", "runtime.num_workers=1", kept=kept)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert digests(project, "curate", "runtime.workers=ray") == here
    finally:
        cluster.shutdown()
