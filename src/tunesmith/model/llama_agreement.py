"""Whether the files of an original LLaMA checkpoint and its params.json are of one model.

Shapes alone do not tell: heads of another width have the same matrices, and so do two models of one size. Refuses to know
names of layers and where a tensor goes.
"""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.model.consolidated import Shard
from tunesmith.model.llama_sizes import LlamaSizes
from tunesmith.model.tensor_files import bytes_of

COMPUTED = "rope.freqs"
"""Rotary frequencies, which some files hold: they follow from params.json."""


def check_layers(shard: Shard, sizes: LlamaSizes, params: Path) -> None:
    """ModelError where params.json names another number of layers: before anything is made for each of them."""
    found = len({name.split(".")[1] for name in shard if name.startswith("layers.")})
    if found != sizes.num_layers:
        raise ModelError(
            f"it says {sizes.num_layers:,} layers, and the weights have {found:,}",
            where=str(params),
            hint="params.json and the weights do not belong together",
        )


def check_rotary(shards: list[Shard], sizes: LlamaSizes, files: list[Path]) -> None:
    """ModelError where a file holds rotary frequencies of heads of another width."""
    for shard, file in zip(shards, files, strict=True):
        for name, tensor in shard.items():
            if name.endswith(COMPUTED) and tensor.numel() != sizes.head_dim // 2:
                raise ModelError(
                    f"{name} is of heads with {2 * tensor.numel()} columns, params.json makes {sizes.head_dim}",
                    where=str(file),
                    hint="params.json and the weights do not belong together",
                )


def check_same_model(shards: list[Shard], files: list[Path]) -> None:
    """ModelError where files differ in what every rank has whole. For files that no checklist confirms."""
    for shard, file in zip(shards, files, strict=True):
        for name, tensor in shard.items():
            if name.endswith("norm.weight") and bytes_of(tensor) != bytes_of(shards[0][name]):
                raise ModelError(
                    f"{name} is not that of {files[0].name}",
                    where=str(file),
                    hint="these files belong to different models, or one is damaged: fetch them again",
                )
