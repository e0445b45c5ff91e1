"""Metrics of a run to trackers, each behind a thread of its own, so that a slow or broken one never holds training up.

Owns the way from events to a tracker's calls, and what happens when those fail: one warning, and no more is sent there.
Refuses to know any tracker; see protocol `Tracker`.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import MissingExtra
from tunesmith.events import Event, Metric, Note, RunFinished
from tunesmith.hashing import digest_json
from tunesmith.protocols import EventSink
from tunesmith.sinks import TRACKERS

_MOST_WAITING = 10_000  # events for one tracker; a tracker that is this far behind is given up
_CLOSE_SECONDS = 30.0  # to send what waits, at the end of a run

_PACKAGES = {
    "tensorboard": ("tensorboardX", "torch.utils.tensorboard"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""What each tracker needs: one of these, the first that is there."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run. `id` is the same when an interrupted run goes on."""

    id: str
    name: str  # "desk-002"
    project: str  # the recipe's name
    folder: Path
    settings: dict[str, Any]  # "train.learning_rate" -> 0.0002; never a secret, since no recipe holds one


class Tracker(Protocol):
    """One run in a tracker. Called from one thread; may raise whatever it likes."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, finished: bool) -> None: ...


def tracked_run(folder: Path, project: str, created: float, recipe: Mapping[str, Any]) -> TrackedRun:
    """created: when the run folder was made; recipe: as JSON, nested."""
    key = digest_json([folder.name, project, created])[:16]
    return TrackedRun(key, folder.name, project, folder, flatten(recipe))


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"lora_rank": 16}} as {"train.lora_rank": 16}; None and empty values are left out."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in flatten(value).items()}
        elif value not in (None, (), [], ""):
            flat[name] = value
    return flat


def check_trackers(names: Sequence[str]) -> None:
    """MissingExtra where a tracker's package is not installed: before a run begins, not at its first step."""
    for name in names:
        if not any(_is_there(package) for package in _PACKAGES[name]):
            extra = "report" if name == "tensorboard" else name
            error = MissingExtra(_PACKAGES[name][0], extra, f"runtime.report_to: {name}")
            error.hint = f"pip install 'tunesmith[{extra}]'; or leave it out of runtime.report_to"
            raise error


def _is_there(module: str) -> bool:
    if module == "torch.utils.tensorboard":  # comes with torch and needs TensorBoard's own package
        return bool(importlib.util.find_spec("torch") and importlib.util.find_spec("tensorboard"))
    return importlib.util.find_spec(module) is not None


class ReportSink:
    """Hands events to every tracker of a run. `close` it when the run has ended, in whatever way.

    Warnings about a tracker go to `events`. MissingExtra where a tracker's package is missing.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, events: EventSink) -> None:
        check_trackers(names)
        self._lanes = [_Lane(name, TRACKERS.load(name), run, events) for name in dict.fromkeys(names)]

    def emit(self, event: Event) -> None:
        for lane in self._lanes:
            lane.emit(event)

    def close(self) -> None:
        """Send what waits, within half a minute each."""
        for lane in self._lanes:
            lane.close()


class _Lane:
    """One tracker, its thread and what waits for it."""

    def __init__(
        self, name: str, open_tracker: Callable[[TrackedRun], Tracker], run: TrackedRun, events: EventSink
    ) -> None:
        self._name, self._open, self._run, self._events = name, open_tracker, run, events
        self._waiting: queue.Queue[Metric | None] = queue.Queue(_MOST_WAITING)
        self._finished = False
        self._fault: str | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=f"report-{name}", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        self._finished = self._finished or isinstance(event, RunFinished)
        if self._fault is None and isinstance(event, Metric):
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                self._fault = f"it is {_MOST_WAITING:,} lines behind"
        self._warn()

    def close(self) -> None:
        if self._fault is None:
            try:
                self._waiting.put(None, timeout=_CLOSE_SECONDS)
                self._thread.join(_CLOSE_SECONDS)
            except queue.Full:
                pass
            if self._thread.is_alive() and self._fault is None:
                self._fault = f"it did not take the last lines within {_CLOSE_SECONDS:.0f} seconds"
        self._warn()

    def _work(self) -> None:
        try:
            tracker = self._open(self._run)
            while (event := self._waiting.get()) is not None and self._fault is None:
                tracker.log(event.stage, event.step, event.values)
            tracker.close(finished=self._finished)
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, training goes on
            self._fault = f"{type(error).__name__}: {error}"

    def _warn(self) -> None:
        """Said by the thread that emits, since no other sink expects two."""
        if self._fault is None or self._warned:
            return
        self._warned = True
        message = (
            f"{self._name} gets no more metrics ({self._fault[:300]}); training goes on, events.jsonl has them all"
        )
        self._events.emit(Note(level="warning", message=message))
