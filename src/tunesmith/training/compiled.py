"""The model's blocks as compiled code (`runtime.compile_blocks`): one is compiled and the others, which are like it, reuse it.

Attention stays as it is: its segments change with every batch, and a new shape of them would compile again. Owns where the
compiler is put in and taken out. Refuses to know what a block computes.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.model.freezing import block_paths
from tunesmith.training.attention import NAME, varlen_attention
from tunesmith.training.last_block import is_trimmed

_COMPILERS = ("c++", "g++", "clang++")


@contextmanager
def compiled_blocks(model: PreTrainedModel, on: bool) -> Generator[None]:
    """Inside `varlen_forward`, and inside this, blocks run compiled; a trimmed last block stays as it is.

    TrainingError where the CPU has no C++ compiler, which torch needs there.
    """
    if not on:
        yield
        return
    if next(model.parameters()).device.type == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise TrainingError(
            "compiling blocks for a CPU needs a C++ compiler, and none is on the PATH",
            where="recipe.runtime.compile_blocks",
            hint="install g++ or clang++, or leave compile_blocks off",
        )
    blocks: list[Any] = [model.get_submodule(path) for path in block_paths(model)]
    blocks = [block for block in blocks if not is_trimmed(block)]
    try:
        AttentionInterface.register(NAME, torch.compiler.disable(varlen_attention))
        for block in blocks:
            block.forward = torch.compile(block.forward, dynamic=True)
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
        AttentionInterface.register(NAME, varlen_attention)
