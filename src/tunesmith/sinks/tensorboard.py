"""TensorBoard: event files under RUN/tensorboard/STAGE, for `tensorboard --logdir RUN/tensorboard`.

Written by tensorboardX, or by torch with TensorBoard's own package.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from tunesmith.sinks.report import TrackedRun

_FLUSH_SECONDS = 10


def open_tracker(run: TrackedRun) -> TensorBoard:
    """See report.Tracker."""
    name = "tensorboardX" if importlib.util.find_spec("tensorboardX") else "torch.utils.tensorboard"
    return TensorBoard(run, importlib.import_module(name).SummaryWriter)


class TensorBoard:
    """A writer per stage: a resumed stage then hides its own later steps, and no other stage's."""

    def __init__(self, run: TrackedRun, writer_class: Any) -> None:
        self._run, self._writer_class = run, writer_class
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._writers:
            folder = self._run.folder / "tensorboard" / stage
            self._writers[stage] = self._writer_class(str(folder), purge_step=step, flush_secs=_FLUSH_SECONDS)
            rows = "\n".join(f"| {name} | `{value}` |" for name, value in self._run.settings.items())
            self._writers[stage].add_text("recipe", f"| parameter | value |\n|---|---|\n{rows}", step)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        for writer in self._writers.values():
            writer.close()
