"""Ranks as child processes on this machine: started with an environment of their own, ended with their parent.

A child reads its standard input, which nobody writes: it ends when the parent does, however that ends. Its errors go to a
file that the parent reads when it has died. Refuses to know what children do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

_LAST_LINES = 3


class Children:
    """Ranks 1 to size - 1 of a training whose rank 0 is this process. Used in a with block, which ends them."""

    def __init__(self, size: int, command: Sequence[str]) -> None:
        self._size, self._command = size, list(command)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_over = threading.Event()

    def __enter__(self) -> Children:
        self._folder = tempfile.TemporaryDirectory(prefix="tunesmith-", ignore_cleanup_errors=True)
        self.store_path = Path(self._folder.name) / "store"
        try:
            for rank in range(1, self._size):
                self._processes.append(self._start(rank))
        except OSError:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self._size),
            "TUNESMITH_STORE": str(self.store_path),
            "TUNESMITH_PATH": json.dumps(sys.path),
        }
        with self._errors(rank).open("wb") as errors:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **place},
                process_group=0,  # Ctrl-C is for this process, which ends the others
            )

    def _errors(self, rank: int) -> Path:
        return Path(self._folder.name) / f"errors-{rank}"

    def watch(self, on_end: Callable[[], None]) -> None:
        """Call on_end, in a thread, when a child fails."""

        def look() -> None:
            while not self._is_over.wait(0.2):
                if any(process.poll() for process in self._processes):
                    on_end()
                    return

        threading.Thread(target=look, daemon=True, name="tunesmith-ranks").start()

    def ended(self, seconds: float) -> str | None:
        """What became of the first child that failed, within so many seconds; None where none did."""
        until = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self._processes, 1):
                if process.poll():
                    return self._describe(rank, process.returncode)
            if time.monotonic() > until:
                return None
            time.sleep(0.05)

    def _describe(self, rank: int, status: int) -> str:
        if status < 0:
            memory = " (most often the memory was full)" if status == -signal.SIGKILL else ""
            return f"rank {rank} of {self._size} was ended by {signal.Signals(-status).name}{memory}"
        lines = self._errors(rank).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = " | ".join(lines[-_LAST_LINES:]) or "it said nothing"
        return f"rank {rank} of {self._size} ended with status {status}: {said}"

    def kill(self) -> None:
        """End every child at once. They hold nothing that is not written again."""
        self._is_over.set()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def end_with_parent() -> None:
    """Ends this process when the parent's end of its standard input closes. For a thread of a child."""
    while os.read(0, 1024):
        pass
    os._exit(1)
