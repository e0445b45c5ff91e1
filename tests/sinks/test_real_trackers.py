"""The trackers' own packages take a run that is interrupted and goes on, and give back what was sent: read with MLflow's client,
from Weights & Biases' offline files and from Trackio's database. Each is skipped by name where the package is not installed."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real

PROGRAM = """
import json, sys
from pathlib import Path
from tunesmith.events import Metric, Note, RunFinished
from tunesmith.sinks.report import ReportSink, tracked_run
class Told:
    def emit(self, event):
        assert not isinstance(event, Note), event.message
given = json.loads(sys.argv[1])
sink = ReportSink([given["tracker"]], tracked_run(Path(given["folder"]), "desk", given["created"], given["recipe"]), Told())
for stage, step, values in given["metrics"]:
    sink.emit(Metric(stage=stage, step=step, values={name: float(value) for name, value in values.items()}))
if given["finished"]:
    sink.emit(RunFinished(seconds=1.0))
sink.close()
"""
RECIPE = {
    "name": "desk",
    "train": {"lora_rank": 16, "max_steps": None},
    "ingest": {"fields": {"客户 (问题)?": "prompt", "a//b": "reply", "..": "x"}, "note": "y" * 7_000},
}
FIRST = [["train", step, {"loss": 1 / step, "learning_rate": 1e-4}] for step in (1, 2, 3)]
SECOND = [
    ["train", 3, {"loss": 0.3, "learning_rate": 1e-4}],  # done again after the kill
    ["train", 4, {"loss": 0.25, "learning_rate": "nan"}],
    ["align", 1, {"loss": 0.7, "rewards/chosen (mean)": 2.5}],
]


def report(tracker: str, place: Path, *, created: float = 17.0, parts: tuple[Any, ...] = (FIRST, SECOND)) -> None:
    """Every part in a process of its own; nothing may reach the terminal, which is ours."""
    pytest.importorskip(tracker)
    folder = place / "desk-002"
    folder.mkdir(exist_ok=True)
    local = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
        "TRACKIO_DIR": str(place / "trackio"),
        "HOME": str(place),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for metrics in parts:
        given = {
            "tracker": tracker,
            "folder": str(folder),
            "created": created,
            "recipe": RECIPE,
            "metrics": metrics,
            "finished": metrics is parts[-1],
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            env={**os.environ, **local},
            capture_output=True,
            text=True,
            timeout=240,
            cwd=place,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout + done.stderr == ""


def test_mlflow_has_one_run_with_its_parameters_every_value_and_its_end(tmp_path: Path) -> None:
    report("mlflow", tmp_path)
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("desk")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "desk-002" and run.info.status == "FINISHED"
    assert run.data.params["train.lora_rank"] == "16" and run.data.params["ingest.note"] == "y" * 500
    assert run.data.params["ingest.fields.客户 _问题__"] == "prompt" and "train.max_steps" not in run.data.params
    assert run.data.params["ingest_fields_a__b"] == "reply"
    history = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 0.3), (4, 0.25)]
    assert run.data.metrics["align/rewards/chosen _mean_"] == 2.5 and run.data.metrics["align/loss"] == 0.7


def records_of(path: Path) -> list[Any]:
    """Records of a .wandb file: 7 bytes of header, then blocks of 32 KiB of (checksum, length, kind, data); kind 1 is a whole
    record, 2, 3 and 4 the beginning, middle and end of one (LevelDB's log format)."""
    record_class = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, found, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:
            at += 32_768 - at % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(record_class.FromString(parts))
            parts = b""
    return found


def test_wandb_has_the_run_its_settings_and_a_step_axis_per_stage(tmp_path: Path) -> None:
    report("wandb", tmp_path)
    files = sorted(tmp_path.glob("desk-002/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "two processes, one run"
    first, second = map(records_of, files)
    run = next(each.run for each in first if each.HasField("run"))
    assert (run.project, run.display_name) == ("desk", "desk-002") and files[0].name == f"run-{run.run_id}.wandb"
    settings = {item.key or ".".join(item.nested_key): item.value_json for item in run.config.update}
    assert settings["train.lora_rank"] == "16"
    axes = {each.metric.glob_name: each.metric.step_metric for each in second if each.HasField("metric")}
    assert axes == {"train/*": "train/step", "align/*": "align/step"}
    history = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in each.history.item}
        for each in [*first, *second]
        if each.HasField("history")
    ]
    losses = [(row["train/step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 0.3), (4, 0.25)]
    assert history[-1]["align/rewards/chosen (mean)"] == 2.5
    ends = [next(each.exit.exit_code for each in part if each.HasField("exit")) for part in (first, second)]
    assert ends == [1, 0]


def test_trackio_has_one_run_and_another_one_of_the_same_name_is_another(tmp_path: Path) -> None:
    report("trackio", tmp_path)
    report("trackio", tmp_path, created=18.0, parts=(FIRST,))
    with sqlite3.connect(tmp_path / "trackio" / "desk.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = dict(database.execute("select run_name, config from configs").fetchall())
    runs = list(dict.fromkeys(name for name, _, _ in rows))
    assert len(runs) == 2 == len(configs) and all(name.startswith("desk-002-") for name in runs)
    mine = [(step, json.loads(values)) for name, step, values in rows if name == runs[0]]
    assert [(step, values.get("train/loss")) for step, values in mine] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (3, 0.3), (4, 0.25), (1, None),
    ]  # fmt: skip
    assert mine[-1][1] == {"align/loss": 0.7, "align/rewards/chosen (mean)": 2.5}
    assert json.loads(configs[runs[0]])["train.lora_rank"] == 16


def test_wandb_without_a_key_asks_nothing_and_says_nothing_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    program = PROGRAM.replace("assert not isinstance(event, Note), event.message", "print(event.message)")
    given = {
        "tracker": "wandb",
        "folder": str(tmp_path),
        "created": 1.0,
        "recipe": {},
        "metrics": FIRST,
        "finished": True,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("\n") == 1 and "there is no API key: run `wandb login`" in done.stdout
