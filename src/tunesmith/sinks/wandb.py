"""Weights & Biases. Its own variables hold: WANDB_MODE (offline, disabled), WANDB_API_KEY, WANDB_ENTITY, WANDB_PROJECT,
WANDB_DIR, WANDB_BASE_URL."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from tunesmith.sinks.report import TrackedRun


def open_tracker(run: TrackedRun) -> WeightsAndBiases:
    """See report.Tracker. RuntimeError where it would have to ask for a key."""
    wandb: Any = importlib.import_module("wandb")
    quiet = wandb.Settings(console="off", silent=True)  # the terminal is ours
    if wandb.setup(quiet).settings.mode == "online" and not _has_key(wandb):
        raise RuntimeError("there is no API key: run `wandb login`, or set WANDB_MODE=offline")
    return WeightsAndBiases(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            config=run.settings,
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            settings=quiet,
        )
    )


def _has_key(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # a version whose login can only ask
        return bool(wandb.api.api_key)


class WeightsAndBiases:
    """One run there. Each stage counts its own steps."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
