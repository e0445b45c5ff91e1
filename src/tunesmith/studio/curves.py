"""A run as numbers that can be drawn: its stages, how far they are, every metric over its steps, and what was said.

Owns the way from events.jsonl (and of a stage that was found finished, its metrics.jsonl) to these numbers, a piece at a
time while the run writes on. Refuses to know pages.
"""

from __future__ import annotations

import math
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tunesmith.errors import StoreError
from tunesmith.store import Run

_NOTES_KEPT = 60
_METRICS_FILE = "logs/metrics.jsonl"


@dataclass
class Series:
    """One metric of one stage. Steps rise; seconds are those the stage has worked, pauses between processes left out."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float | None] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, seconds: float | None, value: float) -> None:
        """A step that was done again after an interruption takes the place of the first one and of what came after."""
        while self.steps and self.steps[-1] >= step:
            for column in (self.steps, self.seconds, self.values):
                column.pop()
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(value)

    def as_json(self, most: int) -> dict[str, Any]:
        """At most `most` points: of more, neighbours become their mean with their range."""
        size = math.ceil(len(self.steps) / most) if self.steps else 1
        thinned: dict[str, Any] = {"steps": [], "seconds": [], "values": []}
        if size > 1:
            thinned |= {"low": [], "high": []}
        for start in range(0, len(self.steps), size):
            end = min(start + size, len(self.steps))
            finite = [value for value in self.values[start:end] if math.isfinite(value)]
            thinned["steps"].append(self.steps[end - 1])
            seconds = self.seconds[end - 1]
            thinned["seconds"].append(None if seconds is None else round(seconds, 2))
            thinned["values"].append(_short(sum(finite) / len(finite)) if finite else None)
            if size > 1:
                thinned["low"].append(_short(min(finite)) if finite else None)
                thinned["high"].append(_short(max(finite)) if finite else None)
        return thinned


@dataclass
class StageState:
    """How far one stage is."""

    name: str
    status: str = "waiting"  # waiting, running, finished, cached, failed
    seconds: float | None = None
    task: str = ""
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    since: tuple[float, float] = (0.0, 0.0)  # (time, done) where this process began the task
    updated: float = 0.0
    metrics: dict[str, Series] = field(default_factory=dict)
    worked: float = 0.0  # seconds up to `clock`
    clock: float | None = None  # time of the last event that `worked` counts

    def eta_seconds(self) -> float | None:
        """By the pace of this process; None where it has none yet."""
        begun, first = self.since
        if self.status != "running" or not self.total or self.done <= first or self.updated <= begun:
            return None
        return (self.total - self.done) * (self.updated - begun) / (self.done - first)

    def as_json(self, most: int) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.name,
            "status": self.status,
            "seconds": self.seconds,
            "task": self.task,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "eta_seconds": self.eta_seconds(),
            "metrics": {name: series.as_json(most) for name, series in self.metrics.items()},
        }


class RunFollower:
    """Reads what a run has written since the last look."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._reset()

    def _reset(self) -> None:
        self._offset, self._file = 0, 0  # how much was read, of which file (its inode)
        self.stages: dict[str, StageState] = {}
        self.notes: deque[dict[str, Any]] = deque(maxlen=_NOTES_KEPT)
        self.updated = 0.0
        self.status = "unknown"

    @property
    def name(self) -> str:
        """Of the run."""
        return self._run.name

    def update(self) -> bool:
        """Take in new lines; whether anything changed. A line that is still being written waits for its end."""
        status = _status(self._run)
        changed = status != self.status
        self.status = status
        try:
            with self._run.events_path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                if found.st_size < self._offset or found.st_ino != self._file:  # another run under the same name
                    changed = changed or self._offset > 0
                    self._reset()
                    self.status, self._file = status, found.st_ino
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return changed  # not there yet, or no more
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        for line in data[:whole].splitlines():
            self._take(line)
        return changed or whole > 0

    def as_json(self, most: int) -> dict[str, Any]:
        """For the page: at most `most` points a curve."""
        return {
            "name": self.name,
            "status": self.status,
            "updated": self.updated,
            "stages": [stage.as_json(most) for stage in self.stages.values()],
            "notes": list(self.notes),
        }

    def _take(self, line: bytes) -> None:
        """A line that is not ours (somebody edited it, or it is of a version to come) counts as far as it can be read."""
        with suppress(orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
            self._take_event(orjson.loads(line))

    def _take_event(self, event: dict[str, Any]) -> None:
        kind, time = event["type"], float(event["time"])
        self.updated = time
        name = str(event.get("stage") or "")
        if kind == "run_started":
            for stage in event["stages"]:
                self.stages.setdefault(str(stage), StageState(str(stage)))
        elif kind == "note":
            self.notes.append(
                {"time": time, "stage": name, "level": event.get("level", "info"), "message": str(event["message"])}
            )
        elif name:
            self._take_of_stage(kind, self.stages.setdefault(name, StageState(name)), event, time)

    def _take_of_stage(self, kind: str, stage: StageState, event: dict[str, Any], time: float) -> None:
        if kind == "stage_started":
            stage.status, stage.clock, stage.total = "running", time, None
        elif kind == "stage_finished":
            stage.status = "cached" if event.get("cached") else "finished"
            stage.seconds = float(event["seconds"])
            if not stage.metrics:
                self._read_metrics(stage)
        elif kind == "stage_failed":
            stage.status = "failed"
            self.notes.append({"time": time, "stage": stage.name, "level": "error", "message": str(event["message"])})
        elif kind == "progress":
            done = float(event["done"])
            if stage.task != event["task"] or stage.total is None or done < stage.since[1]:
                stage.since = (time, done)
            total = event.get("total")
            stage.task, stage.done, stage.total = str(event["task"]), done, None if total is None else float(total)
            stage.unit, stage.updated = str(event.get("unit", "")), time
        elif kind == "metric":
            self._take_metric(stage, int(event["step"]), event["values"], time)

    def _take_metric(self, stage: StageState, step: int, values: dict[str, Any], time: float) -> None:
        known = next((stage.metrics[name] for name in values if name in stage.metrics), None)
        if known is not None and known.steps[-1] >= step:  # done again: the clock goes back too
            kept = [at for at, one in zip(known.seconds, known.steps, strict=True) if one < step]
            stage.worked = (kept[-1] or 0.0) if kept else 0.0
        if stage.clock is not None:
            stage.worked += max(time - stage.clock, 0.0)
        stage.clock = time
        for name, value in values.items():
            if isinstance(value, int | float):
                stage.metrics.setdefault(str(name), Series()).add(step, stage.worked, float(value))

    def _read_metrics(self, stage: StageState) -> None:
        """Of a stage another run did: its artifact has the lines, and of each step how long it took."""
        try:
            artifact = self._run.artifact(stage.name)
        except (StoreError, OSError):
            return
        path: Path | None = artifact.file(_METRICS_FILE) if artifact else None
        if path is None or not path.is_file():
            return
        ends: dict[int, float] = {0: 0.0}  # step -> seconds worked; a step that was done again counts once
        for line in path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
                step = int(row.pop("step"))
                taken = row.pop("seconds", None)
            except (orjson.JSONDecodeError, KeyError, AttributeError, ValueError):
                continue
            before = ends.get(step - 1)
            worked = before + taken if isinstance(taken, int | float) and before is not None else None
            if worked is not None:
                ends[step] = worked
            for name, value in row.items():
                if isinstance(value, int | float) and not name.endswith("_bytes"):
                    stage.metrics.setdefault(name, Series()).add(step, worked, float(value))


def _status(run: Run) -> str:
    try:
        return str(run.info.get("status", "unknown"))
    except (StoreError, OSError):
        return "unknown"  # it is being made


def _short(value: float) -> float:
    return float(f"{value:.6g}")
