"""The folder where fetched models live, and how something large comes to be in it whole.

    CACHE/models/<name>-<digest8>/   transformers folders, tunesmith.json among them
    CACHE/gguf/<name>-<digest8>.gguf GGUF files
    CACHE/partial/<name>/            unfinished work; safe to delete when nothing runs
    CACHE/locks/, CACHE/digests/     one lock per model; known digests of large files

Everything is made under partial/ and enters by one rename. Knows nothing of where models come from.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tunesmith.errors import ModelError, StoreError
from tunesmith.events import Note, Progress
from tunesmith.hashing import digest_file, digest_text
from tunesmith.protocols import EventSink
from tunesmith.store import make_folder, put_in_place, write_atomic

_POLL_SECONDS = 0.5


def cache_dir() -> Path:
    """$TUNESMITH_CACHE, or ~/.cache/tunesmith."""
    named = os.environ.get("TUNESMITH_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "tunesmith"


def make_dir(*parts: str) -> Path:
    """A folder of the cache. StoreError where it cannot be made."""
    path = cache_dir().joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the model cache cannot be used: {error.strerror or error}",
            where=str(path),
            hint="set TUNESMITH_CACHE to a folder you may write to",
        ) from error
    return path


@contextmanager
def lock(name: str, events: EventSink) -> Generator[None]:
    """Hold one model's lock; waits, with a note, while another process fetches it. A killed process frees its lock."""
    held = FileLock(make_dir("locks") / f"{name}.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        events.emit(Note(message=f"another process is fetching {name}: waiting for it"))
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def partial_dir(name: str) -> Generator[Path]:
    """A folder for unfinished work on one model (call with its lock held). Deleted when the work succeeds; what an
    interrupted attempt left is there again on the next."""
    path = make_dir("partial", name)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def place(source: Path, final: Path) -> None:
    """Give finished work (a file or a folder) its final name: make it durable, then one rename."""
    make_folder(final.parent)
    if final.is_dir() and source.is_dir():  # a damaged copy: never in use, since its lock is ours
        shutil.rmtree(final)
    put_in_place(source, final)


def need_room(size_bytes: int, what: str) -> None:
    """ModelError where the cache's disk has less than `size_bytes` free."""
    path = make_dir()
    free = shutil.disk_usage(path).free
    if free < size_bytes:
        raise ModelError(
            f"{what} needs {size_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            where=str(path),
            hint="free some space, or set TUNESMITH_CACHE to a folder on another disk",
        )


@contextmanager
def watch_size(folder: Path, total: int | None, task: str, events: EventSink) -> Generator[None]:
    """Emit Progress in bytes while somebody else (pip, the hub client) fills `folder`."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            events.emit(Progress(task=task, done=min(size_of(folder), total or 1 << 62), total=total, unit="bytes"))

    watcher = threading.Thread(target=watch, name="watch-size", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder that others may be changing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone between listing and looking
            if path.is_file():
                total += path.stat().st_size
    return total


def digest_large_file(path: Path) -> str:
    """sha256 of a file, remembered by path, size and modification time: weights are read once, not on every run."""
    stat = path.stat()
    key = digest_text(f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}")
    known = cache_dir() / "digests" / key
    with suppress(OSError):  # not known yet
        remembered = known.read_text().strip()
        if len(remembered) == 64:
            return remembered
    digest = digest_file(path)
    with suppress(StoreError):  # a cache that cannot be written costs time, nothing else
        write_atomic(make_dir("digests") / key, digest.encode())
    return digest
