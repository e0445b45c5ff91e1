"""Files of an original LLaMA checkpoint: consolidated.NN.pth, one per model-parallel rank, and checklist.chk.

Files are read with weights_only: nothing in them is executed. Knows no layer.
"""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
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
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise ModelError("expected tensors by name", where=str(file))
    odd = next((name for name, value in loaded.items() if value.dtype not in _NUMBERS or value.is_sparse), None)
    if odd is not None:
        raise ModelError(
            f"{odd} holds {loaded[odd].layout} {loaded[odd].dtype}, expected plain floating-point numbers",
            where=str(file),
            hint="quantised or sparse weights must be made whole again first",
        )
    return loaded


def save_shard(shard: dict[str, torch.Tensor], file: Path) -> None:
    """Write one file. StoreError where the disk is full."""
    try:
        torch.save(shard, file)
    except (OSError, RuntimeError) as error:
        known = error if isinstance(error, OSError) else OSError(str(error))
        raise disk_error(known, file, sum(tensor.nbytes for tensor in shard.values())) from error


def check_sums(folder: Path, files: list[Path], events: EventSink) -> bool:
    """md5 of every shard against checklist.chk; without it, the checksums that a zip archive (torch's format) carries.
    Returns whether the checklist confirms all of them."""
    checklist = folder / CHECKLIST
    text = checklist.read_text(encoding="utf-8", errors="replace") if checklist.is_file() else ""
    lines = (line.split() for line in text.splitlines())
    wanted = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    for number, file in enumerate(files):
        if file.name in wanted:
            if digest_md5(file) != wanted[file.name]:
                raise ModelError("its md5 is not the one in checklist.chk", where=str(file), hint="fetch it again")
        elif not _is_whole_archive(file):
            raise ModelError("a checksum inside the file is wrong", where=str(file), hint="fetch it again")
        events.emit(Progress(task="check files", done=number + 1, total=len(files), unit="files"))
    return all(file.name in wanted for file in files)


def _is_whole_archive(file: Path) -> bool:
    """Of another format nothing is known here; load_shard finds what it can."""
    if not zipfile.is_zipfile(file):
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, ValueError, zlib.error):
        return False


def digest_md5(path: Path) -> str:
    """md5 of a file, which is what checklist.chk holds."""
    digest = md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
