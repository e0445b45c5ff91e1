"""Files of an original LLaMA checkpoint: consolidated.NN.pth, one per model-parallel rank, and checklist.chk.

Files are read with weights_only: nothing in them is executed. Knows no layer.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from hashlib import md5
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.events import Progress
from tunesmith.protocols import EventSink
from tunesmith.store import disk_error

CHECKLIST = "checklist.chk"
Shard = Mapping[str, torch.Tensor]


def shard_files(folder: Path) -> list[Path]:
    """consolidated.00.pth and those that follow. ModelError where one is missing."""
    files = sorted(folder.glob("consolidated.*.pth"))
    numbers = [re.fullmatch(r"consolidated\.(\d+)\.pth", file.name) for file in files]
    found = [int(number[1]) for number in numbers if number]
    if not files or found != list(range(len(files))):
        raise ModelError(
            f"expected consolidated.00.pth and those that follow, found {', '.join(file.name for file in files) or 'none'}",
            where=str(folder),
            hint="fetch the missing files; a folder of one size (7B, 13B, ...) is meant",
        )
    return files


def load_shard(file: Path) -> Shard:
    """The tensors of one file, mapped where the format allows."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            loaded = torch.load(file, mmap=True, **options)
        except RuntimeError:  # not a zip archive: written by an old torch, or damaged
            loaded = torch.load(file, **options)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the file holds more than tensors, and reading that could run code: refused",
            where=str(file),
            hint="get the weights from their publisher",
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"the file is damaged: {first}", where=str(file), hint="fetch it again") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ModelError("expected tensors by name", where=str(file))
    return loaded


def save_shard(shard: dict[str, torch.Tensor], file: Path) -> None:
    """Write one file. StoreError where the disk is full."""
    try:
        torch.save(shard, file)
    except (OSError, RuntimeError) as error:
        known = error if isinstance(error, OSError) else OSError(str(error))
        raise disk_error(known, file, sum(tensor.nbytes for tensor in shard.values())) from error


def check_sums(folder: Path, files: list[Path], events: EventSink) -> None:
    """md5 of every shard against checklist.chk, where there is one."""
    checklist = folder / CHECKLIST
    if not checklist.is_file():
        return
    lines = (line.split() for line in checklist.read_text(encoding="utf-8").splitlines())
    wanted = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    for number, file in enumerate(files):
        if file.name in wanted and digest_md5(file) != wanted[file.name]:
            raise ModelError("its md5 is not the one in checklist.chk", where=str(file), hint="fetch it again")
        events.emit(Progress(task="check files", done=number + 1, total=len(files), unit="files"))


def digest_md5(path: Path) -> str:
    """md5 of a file, which is what checklist.chk holds."""
    digest = md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
