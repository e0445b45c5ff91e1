"""A worker process: tasks come in over its connection, outcomes go back in their order (workers/local.py gives them).

Nothing is printed, and it ends when the connection does: the process that gives the work was killed, or needs no more.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from tunesmith.errors import TunesmithError, WorkerError


def work(file_descriptor: int) -> None:
    """Answers until the connection ends. Tasks are read beside the work, so that whoever sends one never waits."""
    connection: Connection[bytes, bytes] = Connection(file_descriptor)
    messages: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(connection, messages), daemon=True).start()
    while True:
        outcome = _outcome(messages.get())
        try:
            connection.send_bytes(outcome)
        except OSError:
            os._exit(1)


def _read(connection: Connection[bytes, bytes], messages: SimpleQueue[bytes]) -> None:
    try:
        while True:
            messages.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _outcome(message: bytes) -> bytes:
    """Result and error, pickled; one of them is None. What the function raises is an outcome: it would raise again."""
    try:
        packed, item = pickle.loads(message)
        outcome = (_function(packed)(item), None)
        return pickle.dumps(outcome, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  raised again by the caller
        if not isinstance(error, TunesmithError):
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return _packed_error(error)


def _packed_error(error: Exception) -> bytes:
    try:
        packed = pickle.dumps((None, error))
        pickle.loads(packed)
    except Exception:  # noqa: BLE001  an exception that does not travel: its text does
        return pickle.dumps((None, WorkerError(f"{type(error).__name__}: {error}")))
    return packed


@lru_cache(maxsize=8)
def _function(packed: bytes) -> Callable[[Any], Any]:
    return pickle.loads(packed)
