"""Room on the disk for a training: its checkpoints and its result, asked for before the first step.

Owns the count of bytes. Refuses to know what a checkpoint looks like inside; store.py looks at the disk.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tunesmith.store import check_disk
from tunesmith.training.memory_bytes import weight_bytes

_BYTES_OF_A_WEIGHT = 4 * 3  # an fp32 master and two fp32 moments


def training_disk_bytes(num_trainable: int, *, keep_checkpoints: int, result_bytes: int) -> int:
    """Most bytes on disk at one moment: the checkpoints kept, the one that is being written, and the result."""
    return (keep_checkpoints + 1) * num_trainable * _BYTES_OF_A_WEIGHT + result_bytes


def check_training_disk(folder: Path, model: nn.Module, *, keep_checkpoints: int, whole_model: bool) -> int:
    """Bytes a training of this model needs under `folder`; StoreError where there is less room.

    whole_model: the result is every weight in the dtype it has, else an fp32 adapter.
    """
    num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    result = weight_bytes(model) if whole_model else 4 * num_trainable
    needed = training_disk_bytes(num_trainable, keep_checkpoints=keep_checkpoints, result_bytes=result)
    check_disk(
        folder,
        needed,
        f"training (runtime.keep_checkpoints {keep_checkpoints}, one more while it is written, and the result)",
    )
    return needed


def check_activations_disk(folder: Path, size_bytes: int, *, num_processes: int, checkpoint_bytes: int) -> None:
    """StoreError where `folder` has no room for a file of what frozen blocks compute, one for each process (those of other
    machines use the same folder), and for the checkpoints that will lie beside them."""
    each = f", {size_bytes:,} bytes for each of {num_processes} processes" if num_processes > 1 else ""
    check_disk(
        folder,
        num_processes * size_bytes + checkpoint_bytes,
        f"what the frozen blocks compute (runtime.cache_activations{each}), with the checkpoints beside it,",
    )
