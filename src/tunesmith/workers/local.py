"""Workers on this machine: this process, or several that are replaced when they die.

Each worker has a connection of its own. A pipe that workers share, as in the standard library's pool and in loky, keeps
half a message for ever where a worker is killed while it writes, and everyone waits for the other half.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from threading import Condition, Thread
from typing import Any, TypeVar

import cloudpickle

from tunesmith.errors import WorkerError

T = TypeVar("T")
R = TypeVar("R")

_DEATHS_ALLOWED = 5  # over one item
_ITEMS_WAITING = 2  # per worker: one is worked on, the next lies ready; few enough that items may be large
_CLOSE_SECONDS = 2.0

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from tunesmith.workers.process import work; work(int(sys.argv[1]))"
)


class ThisProcess:
    """No worker: each item when its result is asked for."""

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        return map(function, items)

    def close(self) -> None:
        pass


class Processes:
    """Processes of this machine, each with one thread, started when there is work for them.

    They are programs of their own, so that a program that calls needs no `if __name__ == "__main__"`; what it defines
    itself travels by value. The items of a process that dies are given out again.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._queue = _Queue(num_workers)
        self._keepers = [_Keeper(self._queue) for _ in range(num_workers)]

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        left = iter(items)
        packed = cloudpickle.dumps(function)
        waiting: deque[_Task] = deque()
        try:
            while True:
                for item in islice(left, _ITEMS_WAITING * self._num_workers - len(waiting)):
                    waiting.append(_Task(packed, item))
                    self._queue.put(waiting[-1])
                if not waiting:
                    return
                yield waiting.popleft().result.result()
        finally:
            self._queue.drop(waiting)  # what nobody asks for any more

    def close(self) -> None:
        self._queue.close()
        for keeper in self._keepers:
            keeper.join(_CLOSE_SECONDS)  # it ends at once, but where a Ctrl-C fell between taking a lock and leaving it


class _Task:
    """One item on its way: what a worker is sent, and where its result arrives."""

    def __init__(self, function: bytes, item: Any) -> None:
        self.message = pickle.dumps((function, item), protocol=pickle.HIGHEST_PROTOCOL)
        self.deaths = 0
        self.result: Future[Any] = Future()

    def finish(self, outcome: bytes) -> None:
        try:
            result, error = pickle.loads(outcome)
        except Exception as failure:  # noqa: BLE001  whatever a class does where it is built again
            result, error = None, failure
        if error is None:
            self.result.set_result(result)
        else:
            self.result.set_exception(error)

    def give_up(self) -> None:
        self.result.set_exception(
            WorkerError(
                f"worker processes died {self.deaths} times over the same work",
                where="recipe.runtime.num_workers",
                hint="most often the memory was full: give fewer workers, or 1 for none beside this process",
            )
        )


class _Queue:
    """What the keepers share: tasks that no worker has yet, and the processes to end when the pool is closed."""

    def __init__(self, num_workers: int) -> None:
        self._changed = Condition()
        self._tasks: deque[_Task] = deque()
        self._num_idle = num_workers
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.closed = False

    def put(self, task: _Task) -> None:
        """WorkerError where the pool is closed: nobody would take the task."""
        with self._changed:
            if self.closed:
                raise WorkerError("the worker processes were closed before all work was given out")
            self._tasks.append(task)
            self._changed.notify()

    def drop(self, tasks: Iterable[_Task]) -> None:
        with self._changed:
            for task in tasks:
                if task in self._tasks:
                    self._tasks.remove(task)

    def wait(self) -> _Task | None:
        """The next task, for a worker that has none; None when the pool is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self.closed)
            if self.closed:
                return None
            self._num_idle -= 1
            return self._tasks.popleft()

    def look(self) -> _Task | None:
        """A task for a worker that has one already, if more are here than idle workers that could begin at once."""
        with self._changed:
            return self._tasks.popleft() if len(self._tasks) > self._num_idle else None

    def count_idle(self) -> None:
        with self._changed:
            self._num_idle += 1

    def close(self) -> None:
        with self._changed:
            self.closed = True
            while self._tasks:
                self._tasks.popleft().result.cancel()
            for process in self._processes:
                process.kill()  # its keeper sees that the connection ends
            self._changed.notify_all()

    @contextmanager
    def process(self) -> Generator[Connection[bytes, bytes]]:
        """The connection to a new worker, which is killed at the end of the block. EOFError if the pool is closed."""
        connection, end_of_worker = Pipe()
        with connection:
            with end_of_worker, self._changed:
                if self.closed:
                    raise EOFError
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(end_of_worker.fileno()), json.dumps(sys.path)],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **_ONE_THREAD},
                    pass_fds=(end_of_worker.fileno(),),
                    process_group=0,  # Ctrl-C is for this process, which ends the others
                )
                self._processes.add(process)
            try:
                yield connection
            finally:
                with self._changed:
                    self._processes.discard(process)
                process.kill()
                process.wait()


class _Keeper(Thread):
    """Keeps one worker process at work, and starts another where it dies."""

    def __init__(self, queue: _Queue) -> None:
        super().__init__(daemon=True, name="tunesmith-worker")
        self._queue = queue
        self._given: deque[_Task] = deque()  # to the worker, which answers in this order
        self.start()

    def run(self) -> None:
        while not self._queue.closed and self._has_work():
            try:
                with self._queue.process() as connection:
                    self._serve(connection)
            except (EOFError, OSError):
                if not self._queue.closed:
                    self._count_death()
        for task in self._given:
            task.result.set_exception(CancelledError())

    def _serve(self, connection: Connection[bytes, bytes]) -> None:
        """Gives work to a process until the pool is closed; EOFError or OSError when the process has died."""
        num_sent = 0
        while self._has_work():
            if len(self._given) < _ITEMS_WAITING and (task := self._queue.look()):
                self._given.append(task)
            for task in islice(self._given, num_sent, None):
                connection.send_bytes(task.message)
            outcome = connection.recv_bytes()
            self._given[0].finish(outcome)
            self._drop_first()
            num_sent = len(self._given)

    def _has_work(self) -> bool:
        if not self._given and (task := self._queue.wait()):
            self._given.append(task)
        return bool(self._given)

    def _count_death(self) -> None:
        task = self._given[0]
        task.deaths += 1
        if task.deaths > _DEATHS_ALLOWED:
            task.give_up()
            self._drop_first()

    def _drop_first(self) -> None:
        self._given.popleft()
        if not self._given:
            self._queue.count_idle()
