"""Workers of a Ray cluster, through Ray Data: its tasks are repeated where a worker or a machine dies.

Machines must see the run folder and the files of the recipe under the same paths, and have this package installed.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from tunesmith.errors import MissingExtra, WorkerError
from tunesmith.recipe import Runtime

T = TypeVar("T")
R = TypeVar("R")

_DEATHS_ALLOWED = 5  # over one item; Ray itself would go on for ever
_ITEMS_PER_DATASET = 256  # results are streamed within one; the items themselves are held


class RayPool:
    """Each item is one block of a Ray data set. Items and results travel pickled, so that their types stay theirs."""

    num_workers: int  # items that are worked on at once

    def __init__(self, num_workers: int | None) -> None:
        """num_workers None: one for each CPU the cluster has now."""
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra("ray", "ray", "runtime.workers: ray")
        import ray

        self._ray: Any = ray
        self._on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray takes it when it starts, and would keep it
        self._started_here = not ray.is_initialized()
        if self._started_here:
            try:
                _start(ray, num_workers)
            except WorkerError:
                self._give_signal_back()
                raise
        _keep_order()
        self.num_workers = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        left = iter(items)
        packed = pickle.dumps(function)
        at_a_time = max(_ITEMS_PER_DATASET, 2 * self.num_workers)
        while some := [pickle.dumps(item) for item in islice(left, at_a_time)]:
            data = self._ray.data.from_items([{"item": each} for each in some], override_num_blocks=len(some))
            at_once = min(self.num_workers, len(some))
            with warnings.catch_warnings():
                # Ray 2.60 warns of max_retries, and has no other name for it; without it a task is repeated for ever.
                warnings.simplefilter("ignore", DeprecationWarning)
                done = data.map(_run, fn_args=(packed,), concurrency=at_once, max_retries=_DEATHS_ALLOWED)
            for row in self._outcomes(done):
                result, error = pickle.loads(row["outcome"])
                if error is not None:
                    raise error
                yield result

    def _outcomes(self, done: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from done.iter_rows()
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WorkerError(
                f"workers of Ray died {1 + _DEATHS_ALLOWED} times over the same work, or it could not be sent to them "
                f"({reason})",
                where="recipe.runtime.workers",
                hint="most often the memory was full: give fewer workers (runtime.num_workers)",
            ) from error

    def close(self) -> None:
        if self._started_here:
            self._ray.shutdown()
            self._give_signal_back()

    def _give_signal_back(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()  # elsewhere Ray could not take it
        if is_main and self._on_sigterm is not None:  # None: not a handler of Python
            signal.signal(signal.SIGTERM, self._on_sigterm)


def _start(ray: Any, num_workers: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    # A cluster has its own number of processors; one that is started here has as many as there shall be workers.
    options: dict[str, Any] = {} if address else {"num_cpus": num_workers or Runtime().usable_threads}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, ValueError, RuntimeError) as error:
        ray.shutdown()
        raise WorkerError(
            f"the Ray cluster cannot be joined: {error}" if address else f"Ray cannot be started: {error}",
            where=f"RAY_ADDRESS={address}" if address else "recipe.runtime.workers",
            hint="start the cluster (`ray start --head`), correct RAY_ADDRESS, or take it away to start Ray here"
            if address
            else "leave out runtime.workers to use processes of this machine",
        ) from error


def _keep_order() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False


def _run(row: dict[str, Any], packed: bytes) -> dict[str, Any]:
    """In a worker. An exception of the function is a result: the work was done, and repeating it would not help."""
    function = pickle.loads(packed)
    try:
        outcome = (function(pickle.loads(row["item"])), None)
    except Exception as error:  # noqa: BLE001  raised again by the caller
        outcome = (None, error)
    return {"outcome": pickle.dumps(outcome)}
