"""An append-only file whose lines are with the operating system before anything counts on them.

Owns the room kept back for a full disk, and syncing beside the event loop. Knows nothing of what the lines mean.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

from tunesmith.store import disk_error
from tunesmith.text.jsonl import RecordLog

_SYNC_SECONDS = 0.25
"""All lines of this time share one fsync, made in a thread. A killed process loses nothing either way; only a power cut
can lose what was not synced. Each line is one write: grouping the writes as well brought nothing that could be measured."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class AnswerLog(RecordLog):
    """A RecordLog of ready-made lines that knows where each one is.

    Room can be kept back in a file of its own beside the log (scratch/answers_room). It is given up when the disk is
    full, so that answers which are paid and on their way still find a place. `is_full` says that this has happened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_full = False
        self._last_sync = 0.0
        self._syncing: asyncio.Future[None] | None = None
        self._room = path.parent / "scratch" / "answers_room"

    def append_bytes(self, data: bytes) -> int:
        """Write whole lines through to the operating system, or none of them; returns their offset in the file.
        StoreError where they do not fit."""
        offset = self._size_bytes
        try:
            written = 0
            while written < len(data):
                written += self._stream.write(data[written:]) or 0
        except OSError as error:
            self._stream.truncate(offset)
            if error.errno in _FULL and self._give_up_room():
                return self.append_bytes(data)
            raise disk_error(error, self.path, offset + len(data)) from error
        self._size_bytes += len(data)
        return offset

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """Bytes of the file."""
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size_bytes)

    def sync_soon(self) -> None:
        """One fsync in a thread, where the last one is long enough ago: on a busy disk it takes longer than answers can
        wait."""
        now = time.monotonic()
        if now - self._last_sync < _SYNC_SECONDS or (self._syncing is not None and not self._syncing.done()):
            return
        self._last_sync = now
        loop = asyncio.get_running_loop()
        self._syncing = loop.run_in_executor(None, _sync_and_close, os.dup(self._stream.fileno()))

    def close(self) -> None:
        """Close, and give the room back."""
        super().close()
        self._remove_room()

    def keep_room(self, size_bytes: int) -> None:
        """Keep so many bytes back, until `close` or until the disk is full."""
        try:
            self._room.parent.mkdir(parents=True, exist_ok=True)
            with self._room.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, size_bytes)
        except OSError:
            self._room.unlink(missing_ok=True)  # no room to keep back; the first write will say so

    def _give_up_room(self) -> bool:
        self.is_full = True
        return self._remove_room()

    def _remove_room(self) -> bool:
        try:
            self._room.unlink()
        except FileNotFoundError:
            return False
        if not any(self._room.parent.iterdir()):
            self._room.parent.rmdir()
        return True


def _sync_and_close(descriptor: int) -> None:
    """The descriptor is a copy, so that closing the log meanwhile is harmless."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
