"""Typed events and the sinks they go to. The JSONL file of a run is the truth; whoever shows progress reads events.

Knows nothing of terminals or web pages. Secrets never enter an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tunesmith.protocols import EventSink


class Event(BaseModel):
    """Base: `time` is seconds since the epoch, `stage` the stage that speaks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float = Field(default_factory=time.time)
    stage: str = ""


class RunStarted(Event):
    type: Literal["run_started"] = "run_started"
    run: str
    stages: tuple[str, ...]


class RunFinished(Event):
    type: Literal["run_finished"] = "run_finished"
    seconds: float


class StageStarted(Event):
    type: Literal["stage_started"] = "stage_started"
    key: str
    resumed: bool = False


class StageFinished(Event):
    type: Literal["stage_finished"] = "stage_finished"
    key: str
    counts: dict[str, int]
    seconds: float
    cached: bool = False


class StageFailed(Event):
    type: Literal["stage_failed"] = "stage_failed"
    message: str
    where: str | None = None
    hint: str | None = None


class Progress(Event):
    """done of total (None = unknown) `unit`s; `detail` holds small live numbers ("kept": 12, "usd": 0.03)."""

    type: Literal["progress"] = "progress"
    task: str
    done: float
    total: float | None = None
    unit: str = ""
    detail: dict[str, float | int | str] = Field(default_factory=dict)


class Metric(Event):
    """Measured values at a step."""

    type: Literal["metric"] = "metric"
    step: int
    values: dict[str, float]


class Note(Event):
    """A sentence for people: a choice that was made and why, or something to look at."""

    type: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    message: str


AnyEvent = Annotated[
    RunStarted | RunFinished | StageStarted | StageFinished | StageFailed | Progress | Metric | Note,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyEvent)


class JsonlSink:
    """Appends each event as one line, flushed at once. Progress lines are thinned to one per task and second."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._stream = path.open("ab")
        self._last_progress: dict[tuple[str, str], float] = {}

    def emit(self, event: Event) -> None:
        if isinstance(event, Progress):
            place = (event.stage, event.task)
            whole = event.total is not None and event.done >= event.total
            if not whole and event.time - self._last_progress.get(place, 0.0) < 1.0:
                return
            self._last_progress[place] = event.time
        self._stream.write(event.model_dump_json(exclude_none=True).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class CallbackSink:
    """Hands each event to a function."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        self._function = function

    def emit(self, event: Event) -> None:
        self._function(event)


class FanOut:
    """Hands each event to several sinks."""

    def __init__(self, sinks: Sequence[EventSink]) -> None:
        self._sinks = list(sinks)

    def emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink.emit(event)


class StageSink:
    """Fills in the stage's name, so that a craft need not know which stage it works for."""

    def __init__(self, sink: EventSink, stage: str) -> None:
        self._sink = sink
        self._stage = stage

    def emit(self, event: Event) -> None:
        self._sink.emit(event if event.stage else event.model_copy(update={"stage": self._stage}))


class NullSink:
    """Forgets every event."""

    def emit(self, event: Event) -> None:
        return None


def _cut_torn_line(path: Path) -> None:
    """A killed run may leave half a line; what is appended must not be glued to it."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as stream:
                stream.truncate(whole)


def read_events(path: Path) -> list[Event]:
    """All whole events of a JSONL file; a torn last line (a killed run) is left out."""
    events: list[Event] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        events.append(_ADAPTER.validate_json(line))
    return events
