"""Several processes train one model: started by the run, or by torchrun; killed, interrupted, and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist
import yaml

from shelf import ShelfStore
from small_models import build_model
from tunesmith.errors import MissingExtra, RecipeError, StoreError, TrainingError
from tunesmith.events import CallbackSink, Metric, Note, NullSink, read_events
from tunesmith.pipeline import execute
from tunesmith.protocols import Context, EventSink
from tunesmith.recipe import Runtime, Train
from tunesmith.resolve import resolve_mapping
from tunesmith.stages import processes
from tunesmith.stages.child_processes import Children
from tunesmith.stages.processes import Seat, num_local_processes
from tunesmith.store import Run, list_runs
from tunesmith.types import Inputs
from waiting import wait_until

NUM_STEPS = 150
ROWS = [
    {"question": f"What is number {i}?", "response": f"It is {7 * i}, my friend, and {i + 1} follows it."}
    for i in range(40)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    build_model(folder / "tiny")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder, NUM_STEPS)))
    return folder


def recipe(folder: Path, max_steps: int, **runtime: Any) -> dict[str, Any]:
    return {
        "name": "several",
        "base_model": str(folder / "tiny"),
        "ingest": {"files": [str(folder / "rows.jsonl")]},
        "curate": {"max_similarity": 1},
        "tokenize": {"max_length": 128, "pack_length": 128},
        "train": {"method": "full", "num_epochs": 1000, "max_steps": max_steps, "global_batch_size": 5},
        "evaluate": None,
        "export": None,
        "runtime": {"precision": "fp32", "num_threads": 1, "checkpoint_every_steps": 10, **runtime},
    }


def train(
    folder: Path, root: str, max_steps: int, events: EventSink, align: dict[str, Any] | None = None, **runtime: Any
) -> Run:
    resolved = resolve_mapping({**recipe(folder, max_steps, **runtime), "align": align}, folder=folder)
    return execute(resolved, ShelfStore(folder / root, folder / "shelf"), events)


def losses_of(run: Run) -> list[float]:
    lines = (run.path / "train" / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def descendants(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(pid).children(recursive=True)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    return losses_of(train(folder, "alone", NUM_STEPS, NullSink()))


@pytest.mark.real
@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder: Path, alone: list[float]) -> None:
    events: list[Any] = []
    run = train(folder, "spread", 12, CallbackSink(events.append), num_processes=2, shard_weights=True)
    assert losses_of(run) == pytest.approx(losses_of(train(folder, "alone-short", 12, NullSink())), rel=1e-5)
    metrics = [event.step for event in read_events(run.events_path) if isinstance(event, Metric)]
    assert metrics == list(range(1, 13))
    notes = [event.message for event in events if isinstance(event, Note)]
    assert "2 processes work on this stage" in notes and "weights are spread over 2 processes" in notes
    written = {path.relative_to(run.path / "train").as_posix() for path in (run.path / "train").rglob("*")}
    beside = list_runs(folder / "alone")[0].path / "train"
    assert written == {path.relative_to(beside).as_posix() for path in beside.rglob("*")}
    assert not dist.is_initialized() and not descendants(os.getpid())


@pytest.mark.real
@pytest.mark.slow
def test_two_processes_draw_the_answers_of_one(folder: Path) -> None:
    align = {
        "loss": "grpo",
        "rewards": ["rouge_l"],
        "num_generations": 3,
        "prompts_per_rollout": 5,
        "max_tokens": 12,
        "max_steps": 2,
    }
    one, two = (train(folder, f"grpo-{n}", 3, NullSink(), align, num_processes=n) for n in (1, 2))
    drawn = [(run.path / "align" / "logs" / "rollouts.jsonl").read_bytes() for run in (one, two)]
    assert drawn[0] == drawn[1] and drawn[0].count(b"\n") == 2 * 5 * 3
    losses = [json.loads(line)["loss"] for line in (two.path / "align" / "losses.jsonl").read_text().splitlines()]
    expected = [json.loads(line)["loss"] for line in (one.path / "align" / "losses.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.real
@pytest.mark.slow
def test_the_first_rank_of_torchrun_alone_asks_a_judge_and_reads_its_bill(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.jsonl").write_text(json.dumps({"match": ".", "text": "5"}) + "\n")
    align = {
        "loss": "grpo",
        "rewards": ["judge"],
        "teacher": {"kind": "scripted", "script": str(tmp_path / "judge.jsonl")},
        "num_generations": 2,
        "prompts_per_rollout": 2,
        "max_tokens": 6,
        "max_steps": 2,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe(folder, 2), "align": align}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "tunesmith.cli.main"]
    command = [*torchrun, "run", str(tmp_path), "--root", str(tmp_path / "root")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (run,) = list_runs(tmp_path / "root")
    aligned = run.artifacts()["align"]
    answers = (aligned.path / "answers.jsonl").read_bytes().count(b"\n")
    assert aligned.facts["num_requests"] == answers > 0
    assert not list((tmp_path / "root" / "partial").iterdir()), "another rank wrote into a folder that was finished"


@pytest.mark.real
@pytest.mark.slow
def test_a_killed_child_ends_the_run_with_its_name_and_nothing_is_lost(folder: Path, alone: list[float]) -> None:
    def kill(event: Any) -> None:
        if isinstance(event, Metric) and event.step == 25:
            for child in descendants(os.getpid()):
                child.kill()

    with pytest.raises(TrainingError, match="rank 1 of 2 was ended by SIGKILL") as caught:
        train(folder, "killed", NUM_STEPS, CallbackSink(kill), num_processes=2)
    assert caught.value.hint is not None and "continues" in caught.value.hint
    assert not descendants(os.getpid())
    notes: list[Any] = []
    run = train(folder, "killed", NUM_STEPS, CallbackSink(notes.append))
    assert any("training continues after step 20" in event.message for event in notes if isinstance(event, Note))
    assert losses_of(run) == pytest.approx(alone, rel=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_an_interrupt_a_kill_and_torchrun_end_in_the_losses_of_one_process(folder: Path, alone: list[float]) -> None:
    root = folder / "story"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunesmith.cli.main", "run", str(folder), "--root", str(root)]

    def steps() -> int:
        runs = list_runs(root)
        if not runs or not runs[0].events_path.exists():
            return 0
        return max((event.step for event in read_events(runs[0].events_path) if isinstance(event, Metric)), default=0)

    def start_and_reach(step: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*command, "--set", "runtime.num_processes=2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        wait_until(lambda: steps() >= step or process.poll() is not None, seconds=120)
        return process

    first = start_and_reach(15)
    children = descendants(first.pid)
    assert len(children) == 1
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and b"interrupted" in errors, errors.decode()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert max(root.rglob("scratch/checkpoints/step-*")).name == f"step-{steps():06d}"  # no step was lost

    second = start_and_reach(steps() + 15)
    children = descendants(second.pid)
    second.kill()
    second.communicate()
    assert len(children) == 1 and not psutil.wait_procs(children, timeout=20)[1]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", *command[2:]]
    done = subprocess.run(torchrun, env=environment, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"done in") == 1  # the other rank says nothing
    run = list_runs(root)[-1]
    notes = [event.message for event in read_events(run.events_path) if isinstance(event, Note)]
    assert any(message.startswith("training continues after step") for message in notes)
    assert run.info["status"] == "finished"
    assert losses_of(run) == pytest.approx(alone, rel=1e-4)


def test_what_a_rank_fails_of_is_told_by_the_first_one(tmp_path: Path) -> None:
    store = processes._file_store(tmp_path / "store", 2)
    processes._tell(Seat(1, 2, 2, store), 0, TrainingError("the loss is nan", where="recipe.train", hint="lower it"))
    found = processes._failure(Seat(0, 2, 2, store), 0, processes._NoChildren())
    assert isinstance(found, TrainingError)
    assert (found.message, found.where, found.hint) == (
        "rank 1 of 2 failed: the loss is nan",
        "recipe.train",
        "lower it",
    )
    assert processes._failure(Seat(0, 2, 2, store), 1, processes._NoChildren()) is None


def test_an_error_that_is_made_of_other_things_than_a_message_is_told_too(tmp_path: Path) -> None:
    store = processes._file_store(tmp_path / "store", 2)
    processes._tell(Seat(1, 2, 2, store), 0, MissingExtra("bitsandbytes", "qlora", "method: qlora"))
    found = processes._failure(Seat(0, 2, 2, store), 0, processes._NoChildren())
    assert isinstance(found, TrainingError)
    assert "needs the package 'bitsandbytes'" in found.message and "tunesmith[qlora]" in (found.hint or "")


def test_a_child_that_ends_before_it_joins_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", "import sys; sys.exit('no memory')")

    def run_stage(*_: Any) -> Any:
        raise AssertionError("a stage without its other rank")

    context = Context(NullSink(), Runtime(num_processes=2, device="cpu"), None)
    with pytest.raises(TrainingError, match="rank 1 of 2 ended with status 1: no memory"):
        processes.on_all_ranks("train", run_stage)(Train(), Inputs({}, {}), tmp_path, context)
    assert not dist.is_initialized()


def test_a_rank_that_fails_before_it_joins_ends_the_stage(tmp_path: Path) -> None:
    store = processes._file_store(tmp_path / "store", 3)
    store.set("ready-0-1", "")
    processes._tell(Seat(2, 3, 3, store), 0, StoreError("no such folder", where="/shared"))
    with pytest.raises(StoreError, match="rank 2 of 3 failed: no such folder"):
        processes._wait_for_all(Seat(0, 3, 3, store), 0, processes._NoChildren())


def test_a_child_takes_no_module_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of data may hold a file named like a module of the standard library."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_PROGRAM", "import json, sys; sys.exit(json.__name__ + ' is the right one')")
    context = Context(NullSink(), Runtime(num_processes=2, device="cpu"), None)
    with pytest.raises(TrainingError, match="json is the right one"):
        processes.on_all_ranks("train", lambda *_: None)(Train(), Inputs({}, {}), tmp_path, context)  # type: ignore[arg-type]


def test_a_child_that_ends_by_itself_is_told_with_its_last_words() -> None:
    program = [sys.executable, "-c", "import os, sys; sys.exit('no memory for rank ' + os.environ['RANK'])"]
    with Children(2, program) as children:
        told = children.ended(20)
    assert told == "rank 1 of 2 ended with status 1: no memory for rank 1"


def test_a_cpu_trains_in_one_process_unless_asked_and_devices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 0)
    assert num_local_processes(Runtime()) == 1
    assert num_local_processes(Runtime(num_processes=2)) == 2
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 8)
    assert num_local_processes(Runtime()) == 8
    assert num_local_processes(Runtime(num_processes=3)) == 3
    assert num_local_processes(Runtime(device="cuda:1")) == num_local_processes(Runtime(device="cpu")) == 1
    assert num_local_processes(Runtime(device="cpu", num_processes=2)) == 2
    with pytest.raises(RecipeError, match="torch sees 8"):
        num_local_processes(Runtime(num_processes=9))
    with pytest.raises(RecipeError, match="cannot share the one device"):
        num_local_processes(Runtime(num_processes=2, device="cuda:1"))
