"""Checkpoints of a training on any number of ranks: written by one or by all, read by any number.

Weights that every rank has whole are written by the first one, in one file (model/checkpoint.py). Weights that are spread are
written by torch.distributed.checkpoint: each rank its parts, in safetensors files that say where in the whole they
belong; nothing is pickled. Both kinds carry a digest of every file and appear by one rename, and both are read back into
whatever the resumed training has, whole weights or parts. Refuses to know what is trained.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tunesmith.errors import TrainingError
from tunesmith.hashing import digest_file
from tunesmith.model.adapters import read_tensors
from tunesmith.model.checkpoint import STATE, TENSORS, Checkpoint, checkpoints_in, delete_others, read_state
from tunesmith.store import disk_error, fsync, make_folder, put_in_place
from tunesmith.training.ranks import Ranks

SHARDS = "shards"


Shapes = Mapping[str, tuple[int, ...]]


def save_spread(
    folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], *, keep: int, ranks: Ranks
) -> None:
    """Write one checkpoint of spread weights, all ranks together, and delete all but the newest `keep`.

    A kill or a loss of power at any moment leaves the earlier ones whole. StoreError where the disk is full.
    """
    final = folder / f"step-{step:06d}"
    making = folder / f".{final.name}.tmp"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        if ranks.is_first:
            make_folder(folder)
            for leftover in (making, final):
                shutil.rmtree(leftover, ignore_errors=True)
            making.mkdir()
        ranks.wait()
        writer = HuggingFaceStorageWriter(str(making / SHARDS), save_distributed=True)
        save(tensors, storage_writer=writer)
        ranks.wait()
        mine = _share_of_files(making / SHARDS, ranks)
        digests = {path.name: digest_file(path) for path in mine}
        for path in mine:
            fsync(path)
        everyone = {name: digest for each in ranks.gather(digests) for name, digest in each.items()}
        if ranks.is_first:
            record = {"step": step, "tensors": everyone, "state": state}
            (making / STATE).write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
            put_in_place(making, final)
            delete_others(final, keep)
    except OSError as error:
        raise disk_error(error, final, size) from error
    ranks.wait()


def newest_of(
    folder: Path, shapes: Shapes, blank: Callable[[], dict[str, torch.Tensor]], ranks: Ranks
) -> tuple[Checkpoint | None, list[str]]:
    """(the newest checkpoint that every rank finds whole, or None; one sentence for each that was passed over).

    shapes: of every tensor that the training has now, by name; blank: such tensors where it has them, to read into.
    TrainingError where a whole checkpoint holds others: it is another training's, and nobody but the user may say that what
    it cost is worth nothing.
    """
    passed_over: list[str] = []
    for name in ranks.from_first(lambda: [path.name for path in reversed(checkpoints_in(folder))]):
        faults = [fault for fault in ranks.gather(_fault(folder / name, ranks)) if fault]
        if not faults:
            foreign = ranks.from_first(lambda path=folder / name: _foreign(path, shapes))
            if foreign is not None:
                ranks.stop(_refusal(foreign, folder))
            return _read(folder / name, blank), passed_over
        passed_over.append(f"checkpoint {name} is damaged ({faults[0]}); an earlier one is used")
    return None, passed_over


def _share_of_files(folder: Path, ranks: Ranks) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))[ranks.rank :: ranks.size]


def _fault(path: Path, ranks: Ranks) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, None where nothing is."""
    try:
        record = read_state(path)
        digests = _digests(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        seen = "" if path.parent.is_dir() else f" on rank {ranks.rank}: do all machines share the run's folder?"
        return f"{STATE} cannot be read: {error}{seen}"
    for name in sorted(digests)[ranks.rank :: ranks.size]:
        if not (path / name).is_file() or digest_file(path / name) != digests[name]:
            return f"{name} is not what was written"
    return None


@dataclass(frozen=True)
class _Foreign:
    """What a whole checkpoint holds that this training has not."""

    file: Path
    what: str


def _foreign(path: Path, shapes: Shapes) -> _Foreign | None:
    """The first tensor that is missing, of another shape, or of no weight of this training; None where all fit."""
    stored = _stored_shapes(path)
    anywhere = path if (path / SHARDS).is_dir() else path / TENSORS
    for name in sorted(shapes):
        if name not in stored:
            return _Foreign(anywhere, f"it has no {name}, which is {_shown(shapes[name])} here")
        file, shape = stored[name]
        if shape != shapes[name]:
            return _Foreign(file, f"{name} is {_shown(shape)} there, and {_shown(shapes[name])} here")
    for name in sorted(stored.keys() - shapes.keys()):
        file, shape = stored[name]
        return _Foreign(file, f"it has {name}, {_shown(shape)}, which is not trained here")
    return None


def _refusal(foreign: _Foreign, folder: Path) -> TrainingError:
    return TrainingError(
        f"the checkpoint is whole, and of another training: {foreign.what}",
        where=str(foreign.file),
        hint=f"go on with the version of tunesmith that wrote it, or delete {folder} to begin anew",
    )


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _stored_shapes(path: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Tensor -> (the file that begins it, its shape as a whole). Reads headers only."""
    if not (path / SHARDS).is_dir():
        file = path / TENSORS
        with safe_open(file, framework="pt") as tensors:
            return {name: (file, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()}  # noqa: SIM118
    metadata: Any = HuggingFaceStorageReader(str(path / SHARDS)).read_metadata()
    files: dict[str, Path] = {}
    for index, stored in metadata.storage_data.items():
        files.setdefault(index.fqn, Path(stored.relative_path))
    return {name: (files[name], tuple(stored.size)) for name, stored in metadata.state_dict_metadata.items()}


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """File name in the checkpoint -> digest."""
    tensors = record["tensors"]
    if isinstance(tensors, str):
        return {TENSORS: tensors}
    return {f"{SHARDS}/{name}": digest for name, digest in tensors.items()}


def _read(path: Path, blank: Callable[[], dict[str, torch.Tensor]]) -> Checkpoint:
    record = read_state(path)
    if isinstance(record["tensors"], str):
        return Checkpoint(int(record["step"]), read_tensors(path / TENSORS), dict(record["state"]))
    tensors = blank()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single process is what it says it assumes
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path / SHARDS)))
    return Checkpoint(int(record["step"]), tensors, dict(record["state"]))
