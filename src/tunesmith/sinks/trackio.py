"""Trackio: a local database (TRACKIO_DIR), shown by `trackio show`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from tunesmith.sinks.report import TrackedRun


def open_tracker(run: TrackedRun) -> Trackio:
    """See report.Tracker."""
    trackio: Any = importlib.import_module("trackio")
    return Trackio(trackio.init(project=run.project, name=run.name, config=run.settings, resume="allow"))


class Trackio:
    """One run there."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish()
