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
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from tunesmith.hashing import digest_file
from tunesmith.model.adapters import read_tensors
from tunesmith.model.checkpoint import STATE, TENSORS, Checkpoint, checkpoints_in, read_state, sync
from tunesmith.store import disk_error
from tunesmith.training.ranks import Ranks

SHARDS = "shards"


def save_spread(
    folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], *, keep: int, ranks: Ranks
) -> None:
    """Write one checkpoint of spread weights, all ranks together, and delete all but the newest `keep`.

    A kill at any moment leaves the earlier ones whole. StoreError where the disk is full.
    """
    final = folder / f"step-{step:06d}"
    making = folder / f".{final.name}.tmp"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
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
            sync(path)
        everyone = {name: digest for each in ranks.gather(digests) for name, digest in each.items()}
        if ranks.is_first:
            record = {"step": step, "tensors": everyone, "state": state}
            (making / STATE).write_text(json.dumps(record, sort_keys=True), encoding="utf-8")
            sync(making / STATE)
            making.replace(final)
            sync(folder)
            for old in checkpoints_in(folder)[:-keep]:
                shutil.rmtree(old)
    except OSError as error:
        raise disk_error(error, final, size) from error
    ranks.wait()


def newest_of(
    folder: Path, blank: Callable[[], dict[str, torch.Tensor]], ranks: Ranks
) -> tuple[Checkpoint | None, list[str]]:
    """(the newest checkpoint that every rank finds whole, or None; one sentence for each that was passed over).

    blank: tensors of the names, shapes and places that the training has now, to read into.
    """
    passed_over: list[str] = []
    for name in ranks.from_first(lambda: [path.name for path in reversed(checkpoints_in(folder))]):
        faults = [fault for fault in ranks.gather(_fault(folder / name, ranks)) if fault]
        if not faults:
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
