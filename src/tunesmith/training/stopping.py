"""SIGINT (Ctrl-C) and SIGTERM while steps are taken: what asks to stop, and when that is done.

A training of one process stops where it is: SIGTERM does what Ctrl-C does. Several ranks can only stop together, so the first
signal to any of them is a request, for the end of the step; the second one is what it was before, and does not wait.
Refuses to know steps and checkpoints.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Inside a with block, on the main thread: signals are taken as above. Elsewhere they are left alone, as is a signal
    that somebody has taken or turned off already."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._before: dict[int, Any] = {}
        self._number: int | None = None  # of the request
        self._is_told = False

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop at the end of the step."""
        self._is_told = self._number is not None
        return self._is_told

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._alone:
            self._take(signal.SIGTERM, signal.SIG_DFL, signal.default_int_handler)
        else:
            self._take(signal.SIGTERM, signal.SIG_DFL, self._ask)
            self._take(signal.SIGINT, signal.default_int_handler, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._give_back()
        if kind is None and self._number is not None and not self._is_told:  # it came after the last step had ended
            signal.raise_signal(self._number)

    def _take(self, number: signal.Signals, usual: Any, handler: Any) -> None:
        if signal.getsignal(number) is usual:
            self._before[number] = signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
