"""Which arithmetic the forward and backward pass use: asked for, or measured on this machine at this model's shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

_ROWS = 512
_REPEATS = 5
_WORTH = 1.15  # bf16 costs accuracy, so it has to be clearly faster


@dataclass(frozen=True)
class Precision:
    """The dtype, and one sentence that says why."""

    dtype: torch.dtype
    reason: str


def choose_precision(
    wanted: Literal["auto", "bf16", "fp32"], device: torch.device, width: int, inner_width: int
) -> Precision:
    """auto: bf16 where a (512, width) x (width, inner_width) product runs faster in it, masters stay fp32 either way.

    Takes some milliseconds on a CPU. On a GPU, auto is bf16 where the GPU has it.
    """
    if wanted == "bf16":
        return Precision(torch.bfloat16, "bf16 as the recipe asks")
    if wanted == "fp32":
        return Precision(torch.float32, "fp32 as the recipe asks")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, "bf16, which this GPU computes natively")
        return Precision(torch.float32, "fp32: this GPU has no bf16")
    fp32, bf16 = (measure_matmul(dtype, width, inner_width) for dtype in (torch.float32, torch.bfloat16))
    ratio = bf16 / fp32
    dtype = torch.bfloat16 if ratio >= _WORTH else torch.float32
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    num_threads = torch.get_num_threads()
    place = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    return Precision(dtype, f"{name}: measured {bf16:,.0f} GFLOP/s in bf16 and {fp32:,.0f} in fp32 on {place}")


def measure_matmul(dtype: torch.dtype, width: int, inner_width: int) -> float:
    """GFLOP/s of a matrix product on the CPU, best of five."""
    left, right = torch.ones(_ROWS, width, dtype=dtype), torch.ones(width, inner_width, dtype=dtype)
    torch.mm(left, right)
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * _ROWS * width * inner_width / best / 1e9
