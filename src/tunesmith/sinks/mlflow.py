"""MLflow, at MLFLOW_TRACKING_URI (its own default where that is not set). An experiment is named as the recipe is, or as
MLFLOW_EXPERIMENT_NAME says."""

from __future__ import annotations

import importlib
import os
import posixpath
import re
import time
from collections.abc import Mapping
from typing import Any

from tunesmith.sinks.report import TrackedRun

_TAG = "tunesmith.run"
_PARAMETERS_AT_ONCE = 100  # limits of MLflow's protocol
_LONGEST_VALUE = 500
_LONGEST_NAME = 250
_NOT_IN_NAMES = re.compile(r"[^\w. :/-]")


def open_tracker(run: TrackedRun) -> MLflow:
    """See report.Tracker. A run that goes on is found by its tag."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # read on import: the terminal is ours
    mlflow: Any = importlib.import_module("mlflow")
    entities: Any = importlib.import_module("mlflow.entities")
    client = mlflow.MlflowClient()  # not the fluent interface: that keeps its run per thread
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
    experiment = client.get_experiment_by_name(project)
    number = experiment.experiment_id if experiment else client.create_experiment(project)
    found = client.search_runs([number], filter_string=f"tags.`{_TAG}` = '{run.id}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(number, run_name=run.name, tags={_TAG: run.id}).info.run_id
        named = {allowed_name(name): str(value)[:_LONGEST_VALUE] for name, value in run.settings.items()}
        parameters = [entities.Param(name, value) for name, value in named.items()]
        for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_AT_ONCE])
    return MLflow(client, run_id, entities.Metric)


def allowed_name(name: str) -> str:
    """The nearest name that MLflow takes: letters, digits and `_-. :/`, and no `//`, `/./` or `/` at an end."""
    found = _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME]
    plain = posixpath.normpath(found) == found and not found.startswith(("/", ".."))
    return found if plain and found != "." else found.replace("/", "_").replace(".", "_")


class MLflow:
    """One run there."""

    def __init__(self, client: Any, run_id: str, metric_class: Any) -> None:
        self._client, self._run_id, self._metric = client, run_id, metric_class

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(allowed_name(f"{stage}/{name}"), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")
