"""Work for the pools under test: worker processes import it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from tunesmith.errors import DataError
from tunesmith.workers import open_pool


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    if number == 7:
        raise DataError("seven is refused", where="rows.jsonl:7", hint="count from eight")
    return number


def die_once(flag: Path, number: int) -> tuple[int, int]:
    """Kills its own process at number 5, the first time."""
    if number == 5 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()


def die_while_it_answers(flag: Path, size: int) -> bytes:
    """An answer of so many bytes; the first time, its process is killed when half of that has been written."""
    if not flag.exists():
        flag.touch()
        Connection._send = _write_half_and_die  # type: ignore[attr-defined]
    return bytes(size)


def _write_half_and_die(connection: Connection[bytes, bytes], data: bytes, *_: object) -> None:
    os.write(connection.fileno(), data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def die_always(number: int) -> int:
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def slow(number: int) -> int:
    time.sleep(0.02)
    return number


def unable_to_travel(number: int) -> object:
    if number:
        raise Stubborn(number, "and no copy")
    return threading.Lock()


class Stubborn(Exception):
    """Cannot be built again from its arguments."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{text} of {number}")


def process_id(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def node_of(number: int) -> tuple[int, str]:
    """The machine of a Ray cluster that it was worked on."""
    import ray

    time.sleep(0.05)
    return number, ray.get_runtime_context().get_node_id()


def later_is_faster(number: int) -> int:
    time.sleep(0.5 / (1 + number))
    return number


if __name__ == "__main__":  # a program that gives work until it is stopped
    with open_pool("local", 2) as workers:
        try:
            for _ in workers.map(slow, count()):
                pass
        except KeyboardInterrupt:
            sys.exit(130)
