"""Bytes that a function, a model and this process take, on a GPU and on a CPU.

Owns the measuring. Refuses to know what is measured.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

_USABLE = 0.95  # of a GPU's free memory: its allocator leaves gaps between blocks
_CGROUP = Path("/sys/fs/cgroup")
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """Bytes above what was there before."""

    peak: int
    kept: int


def measure_bytes(device: torch.device, function: Callable[[], Any]) -> Measured:
    """What `function` allocates, by the allocator's own count: tensors and work space, to the byte."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return Measured(max(peak - before, 0), max(after - before, 0))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to the terminal otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    # Every allocation of torch's CPU allocator is one event with its bytes, a release one with negative bytes.
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    level = peak = 0
    for _, size in changes:
        level += size
        peak = max(peak, level)
    return Measured(peak, max(level, 0))


def available_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_USABLE * (free + cached))
    free = psutil.virtual_memory().available
    return min([free, *_cgroup_room()])


def forget_peak_resident() -> None:
    """Let `peak_resident` count from now on, where the system can (Linux); elsewhere it counts from the process's start."""
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_resident() -> int:
    """Largest resident size of the process, bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; shared ones (a tied head) once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def master_bytes(model: nn.Module) -> int:
    """Bytes of the fp32 copies of trainable weights that the model computes with in fewer bits."""
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad and p.dtype != torch.float32)


def _cgroup_room() -> list[int]:
    """Bytes left under the limit of the container, [] without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return [] if limit == "max" else [max(int(limit) - used, 0)]
    except (OSError, ValueError):
        return []
