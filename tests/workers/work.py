"""Work for the pools under test: worker processes import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
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


def die_always(number: int) -> int:
    time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def slow(number: int) -> int:
    time.sleep(0.02)
    return number


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
