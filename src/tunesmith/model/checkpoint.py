"""Checkpoints of an unfinished training: a folder of tensors and a JSON state, written as a whole or not at all.

    FOLDER/step-000012/tensors.safetensors   weights and optimiser moments
    FOLDER/step-000012/state.json            everything else, and the digest of the tensors; written last

A checkpoint is made under a temporary name, made durable, and renamed: a kill or a loss of power leaves the earlier ones and
this one whole, or without this one. Nothing is pickled. Refuses to know what is trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunesmith.errors import ModelError
from tunesmith.hashing import digest_file
from tunesmith.model.adapters import read_tensors
from tunesmith.store import disk_error, make_folder, put_in_place

TENSORS = "tensors.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimiser steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write one checkpoint and delete all but the newest `keep`. A kill at any moment leaves the earlier ones whole.

    state must be JSON. StoreError where the disk is full.
    """
    final = folder / f"step-{checkpoint.step:06d}"
    making = folder / f".{final.name}.tmp"
    size = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.tensors.values())
    try:
        make_folder(folder)
        for leftover in (making, final):
            if leftover.exists():
                shutil.rmtree(leftover)
        making.mkdir()
        save_file(_on_cpu(checkpoint.tensors), making / TENSORS)
        state = {"step": checkpoint.step, "tensors": digest_file(making / TENSORS), "state": checkpoint.state}
        (making / STATE).write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
        put_in_place(making, final)
    except OSError as error:
        shutil.rmtree(making, ignore_errors=True)
        raise disk_error(error, final, size) from error
    delete_others(final, keep)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """(the newest whole checkpoint or None, one sentence for each damaged one that was passed over)."""
    damaged: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            return _read(path), damaged
        except ModelError as error:
            damaged.append(f"checkpoint {path.name} is damaged ({error.message}); an earlier one is used")
    return None, damaged


def read_state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint holds. OSError or ValueError where it cannot be read."""
    return dict(json.loads((path / STATE).read_bytes()))


def _read(path: Path) -> Checkpoint:
    try:
        state = read_state(path)
        step, digest, inner = int(state["step"]), state["tensors"], dict(state["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{STATE} cannot be read: {error}", where=str(path)) from error
    if not (path / TENSORS).is_file() or digest_file(path / TENSORS) != digest:
        raise ModelError(f"{TENSORS} is not what was written", where=str(path))
    return Checkpoint(step, read_tensors(path / TENSORS), inner)


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders of checkpoints, by step."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def delete_others(newest: Path, keep: int) -> None:
    """Delete all checkpoints but `keep`, of which this is the newest. Those of later steps go too: they were passed over as
    damaged when the training was taken up, and would be kept in place of whole ones."""
    every = checkpoints_in(newest.parent)
    kept = every[: every.index(newest) + 1][-keep:]
    for path in every:
        if path not in kept:
            shutil.rmtree(path)


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
