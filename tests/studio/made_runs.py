"""Runs made of events alone, as a training writes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tunesmith.events import Event, JsonlSink, Metric, Note, Progress, RunStarted, StageFinished, StageStarted
from tunesmith.store import Run, Store, open_run

START = 1_000_000.0


def new_run(root: Path, name: str = "desk", digest: str = "a") -> Run:
    store = Store(root)
    store.create()
    return open_run(store, name, digest)


def append(run: Run, events: Iterable[Event]) -> None:
    sink = JsonlSink(run.events_path)
    for event in events:
        sink.emit(event)
    sink.close()


def beginning(run: Run) -> list[Event]:
    return [
        RunStarted(time=START, run=run.name, stages=("curate", "train", "evaluate")),
        StageFinished(time=START, stage="curate", key="k", counts={}, seconds=0, cached=True),
        StageStarted(time=START, stage="train", key="k"),
    ]


def step(number: int, time: float, *, total: int = 10, stage: str = "train", **values: float) -> list[Event]:
    given = {"loss": 4.0 / number, "grad_norm": 0.5, "learning_rate": 1e-4, "tokens_per_second": 400.0, **values}
    return [
        Metric(time=time, stage=stage, step=number, values=given),
        Progress(time=time, stage=stage, task=stage, done=number, total=total, unit="steps"),
    ]


def steps(numbers: Iterable[int], start: float, *, total: int = 10) -> list[Event]:
    """Two seconds each."""
    return [event for place, number in enumerate(numbers, 1) for event in step(number, start + 2 * place, total=total)]


def warning(message: str, time: float = START) -> Note:
    return Note(time=time, stage="train", level="warning", message=message)
