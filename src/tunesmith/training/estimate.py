"""What a training will cost, before anything is loaded: an estimate from counts, for `tunesmith plan`. Imports no torch."""

from __future__ import annotations

from typing import Literal, TypedDict

CPU_FLOPS_PER_SECOND = 2.4e11
"""Arithmetic one training step does per second on two AVX512-BF16 cores, all overheads included."""

_HEAD_AND_ATTENTION = 1.15  # work beside the weights' own products: output head, attention, low-rank maps
_FIXED_BYTES = 600_000_000  # Python, torch, transformers
_TOKENS_AT_ONCE = 2048  # a usual pack
_START_SECONDS = 8.0  # imports, loading, probes, the check after saving


class TrainingEstimate(TypedDict):
    """Peak memory of the process and wall time."""

    memory_bytes: int
    seconds: float


def estimate_training(
    *, num_tokens: int, num_epochs: float, num_parameters: int, method: Literal["lora", "dora", "qlora", "full"]
) -> TrainingEstimate:
    """An estimate within about a factor of two, for two CPU cores that multiply bf16.

    num_tokens: of one epoch. Work per token is 4 operations a parameter for adapters (forward, gradients of activations)
    and 6 for full (gradients of weights too). Memory: bf16 weights, activations of one pack (which grow with the width,
    about the square root of the parameters, and the depth), and for full fp32 masters, gradients and two moments.
    """
    per_token = (6 if method == "full" else 4) * num_parameters * _HEAD_AND_ATTENTION
    seconds = num_tokens * num_epochs * per_token / CPU_FLOPS_PER_SECOND + _START_SECONDS
    activations = _TOKENS_AT_ONCE * 60 * num_parameters**0.5
    weights = num_parameters * {"qlora": 0.6, "full": 2 + 16}.get(method, 2)
    return {"memory_bytes": int(_FIXED_BYTES + weights + activations), "seconds": seconds}
