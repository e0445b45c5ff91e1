"""Workers on this machine: this process, or several that are replaced when they die."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from tunesmith.errors import MissingExtra, WorkerError

T = TypeVar("T")
R = TypeVar("R")

_DEATHS_ALLOWED = 5  # in a row, without one result in between
_ITEMS_WAITING = 2  # per worker: enough that none is idle, few enough that items may be large

_SECONDS_BETWEEN_LOOKS = 1.0

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class ThisProcess:
    """No worker: each item when its result is asked for."""

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        return map(function, items)

    def close(self) -> None:
        pass


class Processes:
    """Processes of this machine, each with one thread, started at the first item.

    They come from loky, which needs no `if __name__ == "__main__"` in the program that calls and says so when one dies.
    """

    def __init__(self, num_workers: int) -> None:
        if importlib.util.find_spec("loky") is None:
            raise MissingExtra("loky", "data", "more than one worker process (runtime.num_workers)")
        self._num_workers = num_workers
        self._executor: Any = None

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        left = iter(items)
        waiting: deque[tuple[T, Future[R], Any]] = deque()  # and the executor that has it
        deaths = 0
        while True:
            try:
                while len(waiting) < _ITEMS_WAITING * self._num_workers:
                    item = next(left)
                    waiting.append((item, *self._submit(function, item)))
            except StopIteration:
                pass
            if not waiting:
                return
            try:
                result = waiting[0][1].result()
            except BrokenProcessPool as error:
                deaths += 1
                if deaths > _DEATHS_ALLOWED:
                    raise WorkerError(
                        f"worker processes died {deaths} times in a row over the same work ({error})",
                        where="recipe.runtime.num_workers",
                        hint="most often the memory was full: give fewer workers, or 1 for none beside this process",
                    ) from error
                if self._executor is waiting[0][2]:  # else another map() has replaced it already
                    self.close()
                waiting = deque((item, *self._submit(function, item)) for item, _, _ in waiting)
                continue
            deaths = 0
            waiting.popleft()
            yield result

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
            self._executor = None

    def _submit(self, function: Callable[[T], R], item: T) -> tuple[Future[R], Any]:
        # Ctrl-C is for this process, which stops the others. They inherit the mask, so that none dies of it with a
        # traceback, not even while it starts; here the signal waits.
        resource_tracker.ensure_running()  # where it starts, it takes the mask away
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if self._executor is None:
                from loky import ProcessPoolExecutor

                self._executor = ProcessPoolExecutor(
                    self._num_workers, initializer=_end_with, initargs=(os.getpid(),), env=_ONE_THREAD
                )
            return self._executor.submit(function, item), self._executor
        except BrokenProcessPool as error:  # noticed at once: the caller sees it when it asks for the result
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed, self._executor
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with(parent: int) -> None:
    """In a worker: end where the process that gives the work was killed, which nothing else would tell."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
