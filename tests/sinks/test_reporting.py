"""Trackers get every metric, and nothing a tracker does holds a run up or ends it."""

from __future__ import annotations

import importlib.util
import struct
import sys
import threading
import time
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tunesmith.errors import MissingExtra
from tunesmith.events import Metric, Note, Progress, RunFinished
from tunesmith.sinks import TRACKERS, report
from tunesmith.sinks.report import ReportSink, TrackedRun, check_trackers, flatten, tracked_run

RECIPE = {"name": "desk", "train": {"lora_rank": 16, "loss": "cross_entropy", "max_steps": None}, "export": None}


class Kept:
    """An event sink that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Note) and event.level == "warning"]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    folder = tmp_path / "desk-002"
    folder.mkdir()
    return tracked_run(folder, "desk", 17.0, RECIPE)


def metric(step: int, stage: str = "train", loss: float | None = None) -> Metric:
    return Metric(stage=stage, step=step, values={"loss": loss or 1 / step, "learning_rate": 1e-4})


def send(sink: ReportSink, *, finished: bool = True, steps: int = 3) -> None:
    for step in range(1, steps + 1):
        sink.emit(Progress(stage="train", task="train", done=step, total=steps))
        sink.emit(metric(step))
    sink.emit(metric(1, "align"))
    if finished:
        sink.emit(RunFinished(seconds=1.0))
    sink.close()


def events_of(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of TensorBoard's files: length, checksum, protobuf, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [
                (value.tag, event.step, round(value.simple_value, 4))
                for value in event.summary.value
                if value.HasField("simple_value")
            ]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_every_value_in_a_folder_per_stage(run: TrackedRun, kept: Kept) -> None:
    pytest.importorskip("tensorboardX")
    send(ReportSink(["tensorboard"], run, kept))
    found = events_of(run.folder / "tensorboard" / "train")
    assert [each for each in found if each[0] == "loss"] == [("loss", 1, 1.0), ("loss", 2, 0.5), ("loss", 3, 0.3333)]
    assert [each[:2] for each in events_of(run.folder / "tensorboard" / "align")] == [("loss", 1), ("learning_rate", 1)]
    assert kept.warnings == []


def test_settings_are_flat_and_what_is_not_set_is_left_out() -> None:
    assert flatten(RECIPE) == {"name": "desk", "train.lora_rank": 16, "train.loss": "cross_entropy"}


def test_a_run_that_goes_on_has_the_same_id_and_another_run_another(tmp_path: Path) -> None:
    first = tracked_run(tmp_path / "desk-001", "desk", 5.0, RECIPE)
    assert first.id == tracked_run(tmp_path / "desk-001", "desk", 5.0, {}).id
    assert first.id != tracked_run(tmp_path / "desk-002", "desk", 5.0, RECIPE).id
    assert first.id != tracked_run(tmp_path / "desk-001", "desk", 6.0, RECIPE).id


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_said_before_the_run(
    name: str, run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=f"runtime.report_to: {name} needs the package") as error:
        ReportSink([name], run, kept)
    extra = str(error.value.hint).partition("[")[2].partition("]")[0]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [each.partition(">")[0] for each in project["optional-dependencies"][extra]]
    assert wanted == [error.value.message.split("'")[1]]


def test_no_tracker_needs_nothing() -> None:
    check_trackers([])


class Broken:
    """Opens, or not; takes some lines, and then fails, hangs or ends the thread's patience."""

    def __init__(self, how: str, release: threading.Event) -> None:
        self.how, self.release, self.taken = how, release, 0

    def open(self, _run: TrackedRun) -> Broken:
        if self.how == "open":
            raise ConnectionError("no route to the tracker")
        return self

    def log(self, stage: str, step: int, values: Any) -> None:
        self.taken += 1
        if self.how == "log" and step == 2:
            raise ValueError("bad value")
        if self.how == "hang":
            self.release.wait(60)

    def close(self, *, finished: bool) -> None:
        if self.how == "close":
            raise OSError("disk full")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("open", "ConnectionError: no route to the tracker"),
        ("log", "ValueError: bad value"),
        ("close", "OSError: disk full"),
        ("hang", "did not take the last lines"),
    ],
)
def test_a_broken_tracker_is_warned_of_once_and_the_others_go_on(
    how: str, said: str, run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    broken, whole = Broken(how, release), Broken("no", release)
    monkeypatch.setattr(report, "check_trackers", lambda _: None)
    monkeypatch.setattr(report, "_CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(TRACKERS, "load", lambda name: {"wandb": broken, "mlflow": whole}[name].open)
    sink = ReportSink(["wandb", "mlflow"], run, kept)
    started = time.monotonic()
    send(sink, steps=20)
    sink.emit(metric(99))
    release.set()
    assert time.monotonic() - started < 5
    assert len(kept.warnings) == 1 and said in kept.warnings[0] and kept.warnings[0].startswith("wandb gets no more")
    assert whole.taken == 21


def test_a_tracker_that_falls_far_behind_is_given_up(
    run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(report, "check_trackers", lambda _: None)
    monkeypatch.setattr(report, "_MOST_WAITING", 5)
    monkeypatch.setattr(TRACKERS, "load", lambda _: Broken("hang", release).open)
    sink = ReportSink(["wandb"], run, kept)
    for step in range(1, 20):
        sink.emit(metric(step))
    sink.close()
    release.set()
    assert len(kept.warnings) == 1 and "5 lines behind" in kept.warnings[0]


class Recorder:
    """A stand-in for a tracker's run: every call is kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: self.calls.append((name, given, named))

    def of(self, name: str) -> list[tuple[Any, Any]]:
        return [(given, named) for called, given, named in self.calls if called == name]


def install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: asked == name or find_spec(asked))


@pytest.mark.parametrize("finished", [True, False])
def test_wandb_gets_the_run_its_settings_and_a_step_axis_per_stage(
    run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    theirs, asked = Recorder(), {}
    install(
        monkeypatch,
        "wandb",
        init=lambda **given: (asked.update(given), theirs)[1],
        Settings=SimpleNamespace,
        setup=lambda _: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
    )
    for variable in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    send(ReportSink(["wandb"], run, kept), finished=finished)
    assert kept.warnings == []
    assert (asked["project"], asked["name"], asked["id"], asked["resume"]) == ("desk", "desk-002", run.id, "allow")
    assert asked["config"]["train.lora_rank"] == 16
    assert theirs.of("define_metric") == [
        (("train/*",), {"step_metric": "train/step"}),
        (("align/*",), {"step_metric": "align/step"}),
    ]
    assert theirs.of("log")[1][0][0] == {"train/loss": 0.5, "train/learning_rate": 1e-4, "train/step": 2}
    assert theirs.of("finish") == [((), {"exit_code": 0 if finished else 1})]


@pytest.mark.parametrize("login", [lambda *, prompt, verify: prompt, lambda *, verify: None])
def test_wandb_without_a_key_is_a_warning_not_a_question(
    run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch, login: Any
) -> None:
    """Also where its login can only ask: then that is not called."""
    install(
        monkeypatch,
        "wandb",
        Settings=SimpleNamespace,
        setup=lambda _: SimpleNamespace(settings=SimpleNamespace(mode="online")),
        login=login,
        api=SimpleNamespace(api_key=None),
    )
    send(ReportSink(["wandb"], run, kept))
    assert len(kept.warnings) == 1 and "WANDB_MODE=offline" in kept.warnings[0]


def test_mlflow_gets_parameters_once_and_finds_its_run_again(
    run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Client(Recorder):
        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7") if made else None

        def create_experiment(self, name: str) -> str:
            return "7"

        def search_runs(self, experiments: list[str], **_: Any) -> list[Any]:
            return made

        def create_run(self, experiment: str, *, run_name: str, tags: dict[str, str]) -> Any:
            made.append(SimpleNamespace(info=SimpleNamespace(run_id=f"{experiment}/{run_name}"), tags=tags))
            return made[-1]

    clients: list[Client] = []
    install(monkeypatch, "mlflow", MlflowClient=lambda: clients.append(Client()) or clients[-1])
    entities = {"Param": lambda *given: given, "Metric": lambda *given: given}
    install(monkeypatch, "mlflow.entities", **entities)
    send(ReportSink(["mlflow"], run, kept), finished=False)
    send(ReportSink(["mlflow"], run, kept))
    assert kept.warnings == [] and len(made) == 1 and made[0].tags == {"tunesmith.run": run.id}
    first, second = clients
    assert ("train.lora_rank", "16") in first.of("log_batch")[0][1]["params"]
    name, value, _, step = first.of("log_batch")[2][1]["metrics"][0]
    assert (name, value, step) == ("train/loss", 0.5, 2)
    assert first.of("set_terminated")[0][0] == ("7/desk-002", "FAILED")
    assert second.of("update_run")[0][0] == ("7/desk-002",) and second.of("set_terminated")[0][0][1] == "FINISHED"


def test_trackio_gets_the_run_and_its_steps(run: TrackedRun, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, asked = Recorder(), {}
    install(monkeypatch, "trackio", init=lambda **given: (asked.update(given), theirs)[1])
    send(ReportSink(["trackio"], run, kept))
    assert kept.warnings == [] and asked["name"] == f"desk-002-{run.id[:6]}"
    assert (asked["project"], asked["resume"]) == ("desk", "allow")
    assert theirs.of("log")[1] == (({"train/loss": 0.5, "train/learning_rate": 1e-4},), {"step": 2})
    assert theirs.of("finish") == [((), {})]


def test_a_recipe_names_trackers_and_no_others() -> None:
    from pydantic import ValidationError

    from tunesmith.recipe import Runtime

    assert Runtime(report_to="wandb").report_to == ("wandb",)  # pyright: ignore[reportArgumentType]
    assert Runtime().report_to == () and set(TRACKERS) == set(report._PACKAGES)
    with pytest.raises(ValidationError, match="tensorboard"):
        Runtime(report_to=["tensorbord"])  # pyright: ignore[reportArgumentType]
