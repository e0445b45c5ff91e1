"""Where artifacts and runs live on disk, and how they come to be there whole.

    ROOT/artifacts/<stage>-<key>/   finished, immutable, manifest.json written last
    ROOT/partial/<stage>-<key>/     unfinished: leftovers a resumed stage continues from
    ROOT/locks/                     one lock per key; a killed process frees its locks
    ROOT/<name>-001/                a run: recipe, resolved recipe, events.jsonl, links to its artifacts

A commit is one rename. Knows nothing of what a stage does.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
from filelock import FileLock, Timeout
from pydantic import ValidationError

from tunesmith import __version__
from tunesmith.errors import StoreError
from tunesmith.hashing import digest_file, digest_json
from tunesmith.types import Artifact, FileEntry, Manifest, Outcome

MANIFEST = "manifest.json"
NOT_DIGESTED = "logs/"
SCRATCH = "scratch"


def default_root() -> Path:
    """$TUNESMITH_ROOT, or `runs` in the working folder."""
    return Path(os.environ.get("TUNESMITH_ROOT", "runs"))


@dataclass(frozen=True)
class Identity:
    """What makes a stage's output: its key is the digest of all of it."""

    stage: str
    version: int
    section: dict[str, Any]
    inputs: dict[str, str]  # input name -> digest

    @property
    def key(self) -> str:
        """64 hex digits."""
        return digest_json([self.stage, self.version, self.section, self.inputs])


class Store:
    """The artifacts under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> None:
        """Make the folders. StoreError where that cannot be."""
        try:
            for name in ("artifacts", "partial", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make the run folder: {error.strerror}",
                where=str(self.root),
                hint="choose another with --root",
            ) from error

    def artifact_dir(self, identity: Identity) -> Path:
        """Folder a finished artifact has."""
        return self.root / "artifacts" / _folder_name(identity)

    def partial_dir(self, identity: Identity) -> Path:
        """Folder an unfinished stage works in."""
        return self.root / "partial" / _folder_name(identity)

    def find(self, identity: Identity) -> Artifact | None:
        """The finished artifact of this key, None where there is none. StoreError where it is damaged."""
        path = self.artifact_dir(identity)
        if not (path / MANIFEST).is_file():
            return None
        artifact = load_artifact(path)
        verify(artifact)
        return artifact

    def set_aside(self, identity: Identity) -> Path:
        """Move a damaged artifact out of the way, so that it is built anew; returns where it went."""
        aside = self.root / "damaged" / f"{_folder_name(identity)}-{int(time.time())}"
        aside.parent.mkdir(exist_ok=True)
        self.artifact_dir(identity).rename(aside)
        return aside

    @contextmanager
    def lock(self, identity: Identity) -> Generator[None]:
        """Hold this key. StoreError where another process holds it."""
        with self._hold(_folder_name(identity), f"working on the stage `{identity.stage}` of the same run"):
            yield

    @contextmanager
    def lock_run(self, run: Run) -> Generator[None]:
        """Hold a run folder, so that one process writes its events. StoreError where another process holds it."""
        with self._hold(f"run-{run.name}", f"running {run.name}"):
            yield

    @contextmanager
    def _hold(self, name: str, what: str) -> Generator[None]:
        lock = FileLock(self.root / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"another process is {what}",
                where=str(lock.lock_file),
                hint="wait for it, or stop it; a killed process frees its lock by itself",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def commit(self, identity: Identity, outcome: Outcome, seconds: float) -> Artifact:
        """Turn the partial folder into a finished artifact: hash, write the manifest, one rename."""
        partial = self.partial_dir(identity)
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        (partial / f".{MANIFEST}.tmp").unlink(missing_ok=True)  # of a commit that was killed
        files = {
            path.relative_to(partial).as_posix(): FileEntry(sha256=digest_file(path), size_bytes=path.stat().st_size)
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = Manifest(
            kind=outcome.kind,
            stage=identity.stage,
            stage_version=identity.version,
            key=identity.key,
            digest=_content_digest(outcome.kind, files, outcome.facts),
            section=identity.section,
            inputs=identity.inputs,
            counts=outcome.counts,
            facts=outcome.facts,
            files=files,
            provenance=_provenance(seconds),
        )
        write_atomic(partial / MANIFEST, orjson.dumps(manifest.model_dump(), option=orjson.OPT_INDENT_2))
        final = self.artifact_dir(identity)
        if final.exists():  # a folder without a manifest: never finished
            shutil.rmtree(final)
        put_in_place(partial, final)
        return Artifact(final, manifest)


def load_artifact(path: Path) -> Artifact:
    """Read a finished artifact's manifest. StoreError where it is missing or broken."""
    manifest_path = path / MANIFEST
    try:
        return Artifact(path, Manifest.model_validate_json(manifest_path.read_bytes()))
    except FileNotFoundError:
        raise StoreError("this is not a finished artifact: it has no manifest.json", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"the manifest is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=str(manifest_path),
            hint="delete the folder; the stage will run again",
        ) from None


def verify(artifact: Artifact) -> None:
    """Compare every file with the manifest by content. StoreError names the first one that differs."""
    manifest = artifact.manifest
    if manifest.digest != _content_digest(manifest.kind, manifest.files, manifest.facts):
        raise StoreError("the manifest was changed by hand", where=str(artifact.path / MANIFEST))
    for name, entry in manifest.files.items():
        path = artifact.path / name
        if not path.is_file():
            raise StoreError("a file of a finished artifact is missing", where=str(path))
        if path.stat().st_size != entry.size_bytes or digest_file(path) != entry.sha256:
            raise StoreError("a file of a finished artifact was changed or damaged", where=str(path))


_LOST_RECORD = "delete the run folder: its artifacts are kept apart, and the next run finds them"


class Run:
    """One run folder. The events file is the truth about what happened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Folder name, as `tunesmith show` takes it."""
        return self.path.name

    @property
    def events_path(self) -> Path:
        """Where the events are."""
        return self.path / "events.jsonl"

    @property
    def info(self) -> dict[str, Any]:
        """run.json: recipe digest, status, artifacts by stage. StoreError where it is damaged."""
        path = self.path / "run.json"
        try:
            info = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise StoreError(f"the run's record is damaged: {error}", where=str(path), hint=_LOST_RECORD) from None
        if not isinstance(info, dict):
            raise StoreError("the run's record is damaged: it is no object", where=str(path), hint=_LOST_RECORD)
        return cast("dict[str, Any]", info)

    @property
    def damaged(self) -> bool:
        """Whether `info` cannot be read."""
        try:
            return not self.info
        except StoreError:
            return True

    def update(self, **changes: Any) -> None:
        """Change run.json, atomically."""
        path = self.path / "run.json"
        info = self.info if path.exists() else {}
        write_atomic(path, orjson.dumps({**info, **changes}, option=orjson.OPT_INDENT_2))

    def link(self, stage: str, artifact: Artifact) -> None:
        """Record which artifact a stage made, and link to it where the file system can."""
        artifacts = dict(self.info.get("artifacts", {}))
        artifacts[stage] = artifact.path.name
        self.update(artifacts=artifacts)
        link = self.path / stage
        with suppress(OSError):  # a file system without links still has run.json
            if link.is_symlink():
                link.unlink()
            link.symlink_to(Path("..") / "artifacts" / artifact.path.name, target_is_directory=True)

    def artifact(self, stage: str) -> Artifact | None:
        """The artifact a stage of this run made, None where it has not."""
        name = self.info.get("artifacts", {}).get(stage)
        return load_artifact(self.path.parent / "artifacts" / name) if name else None

    def artifacts(self) -> dict[str, Artifact]:
        """Every artifact of the run, by stage."""
        return {
            stage: load_artifact(self.path.parent / "artifacts" / name)
            for stage, name in self.info.get("artifacts", {}).items()
        }


def open_run(store: Store, name: str, recipe_digest: str) -> Run:
    """The run folder to write to: an unfinished one of the same recipe is continued, else a new number is taken."""
    runs = [run for run in list_runs(store.root) if _base_name(run.name) == name]
    last = runs[-1].info if runs and not runs[-1].damaged else {}
    if last.get("recipe_digest") == recipe_digest and last.get("status") != "finished":
        return runs[-1]
    number = int(runs[-1].name.rsplit("-", 1)[1]) + 1 if runs else 1
    while True:  # two processes may start at once: mkdir decides
        path = store.root / f"{name}-{number:03d}"
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
    run = Run(path)
    run.update(name=name, recipe_digest=recipe_digest, status="running", created=time.time(), artifacts={})
    return run


def list_runs(root: Path) -> list[Run]:
    """Every run under a root, by name and number."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if (path / "run.json").is_file() and re.search(r"-\d+$", path.name)]
    return [
        Run(path) for path in sorted(found, key=lambda path: (_base_name(path.name), int(path.name.rsplit("-", 1)[1])))
    ]


def find_run(reference: str, root: Path) -> Run:
    """A run by folder, by full name (`desk-002`), by recipe name (`desk`: its newest) or `latest`."""
    folder = Path(reference)
    if (folder / "run.json").is_file():
        return Run(folder)
    runs = list_runs(root)
    matching = [run for run in runs if reference in (run.name, _base_name(run.name))]
    if reference == "latest":
        matching = sorted((run for run in runs if not run.damaged), key=lambda run: run.info.get("created", 0.0))
    if matching:
        return matching[-1]
    names = ", ".join(run.name for run in runs[-8:]) or "none yet"
    raise StoreError(f"there is no run {reference!r}", where=str(root), hint=f"runs here: {names}; or give --root")


def _base_name(run_name: str) -> str:
    return run_name.rsplit("-", 1)[0]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, path, len(data)) from error


def disk_error(error: OSError, path: Path, size_bytes: int) -> StoreError:
    """An OSError in words: what could not be written, how large it is, how much room there is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(path.parent).free
        return StoreError(
            f"no room to write {size_bytes:,} bytes ({free:,} free)",
            where=str(path),
            hint="free some space and run the same command again: finished work is kept",
        )
    return StoreError(f"cannot be written: {error.strerror or error}", where=str(path))


def check_disk(folder: Path, bytes_needed: int, what: str) -> None:
    """StoreError where there are not `bytes_needed` free for `what` where `folder` is, or will be made."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < bytes_needed:
        raise StoreError(
            f"{what} may take {bytes_needed:,} bytes, and {free:,} are free ({bytes_needed - free:,} too few)",
            where=str(folder),
            hint="free some space, or choose another disk with --root",
        )


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(source: Path, final: Path) -> None:
    """Give finished work (a file or a folder) its final name, so that a loss of power leaves all of it or nothing: what is
    in it reaches the disk before the rename does, and the rename before this returns."""
    inside = sorted(source.rglob("*"), reverse=True) if source.is_dir() else []  # what a folder holds before the folder
    for path in (*(path for path in inside if path.is_file() or path.is_dir()), source):
        fsync(path)
    source.replace(final)
    fsync(final.parent)
    if source.parent != final.parent:
        fsync(source.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those it is in, so that a loss of power leaves them there. One that is there stays as it is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        fsync(made.parent)


def _folder_name(identity: Identity) -> str:
    return f"{identity.stage}-{identity.key[:16]}"


def _content_digest(kind: str, files: Mapping[str, FileEntry], facts: dict[str, Any]) -> str:
    digested = {name: entry.sha256 for name, entry in files.items() if not name.startswith(NOT_DIGESTED)}
    return digest_json([kind, digested, facts])


def _provenance(seconds: float) -> dict[str, Any]:
    return {
        "tunesmith": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
    }
