"""Trackio: a local database (TRACKIO_DIR), shown by `trackio show`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from tunesmith.sinks.report import TrackedRun


def open_tracker(run: TrackedRun) -> Trackio:
    """See report.Tracker. Trackio knows a run by its name alone, so the name carries a piece of the run's id: another run
    of the same name (in another folder, or after a deletion) stays another run."""
    trackio: Any = importlib.import_module("trackio")
    _silence()
    name = f"{run.name}-{run.id[:6]}"
    return Trackio(trackio.init(project=run.project, name=name, config=run.settings, resume="allow"))


def _silence() -> None:
    """Its modules print what they do, with no switch to leave it; the terminal is ours. A name of the module hides the
    builtin, and stdout, which other threads write to, is left alone."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio" and module is not None:
            vars(module)["print"] = lambda *_given, **_named: None


class Trackio:
    """One run there."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish()
