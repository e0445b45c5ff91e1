"""Which weights of a model may change: its topmost blocks, its embeddings, or all. Knows no optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.adapters import adapter_layers
from tunesmith.model.value_head import ATTACHED

_WHERE = "recipe.train.trainable_layers"


def block_paths(model: PreTrainedModel) -> list[str]:
    """Module paths of the decoder's blocks, bottom to top. ModelError where they cannot be told."""
    number = model.config.get_text_config().num_hidden_layers
    lists = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == number
    ]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of {number} blocks, so its top cannot be told")
    outermost = min(lists, key=lambda path: path.count("."))
    return [f"{outermost}.{index}" for index in range(number)]


def top_blocks(model: PreTrainedModel, trainable_layers: int | Literal["all"]) -> list[str]:
    """Paths of the topmost blocks. RecipeError where the model has fewer."""
    blocks = block_paths(model)
    if trainable_layers == "all":
        return blocks
    if trainable_layers > len(blocks):
        raise RecipeError(
            f"the model has {len(blocks)} blocks, so the top {trainable_layers} cannot be trained",
            where=_WHERE,
            hint="take a smaller number, or all",
        )
    return blocks[-trainable_layers:]


def within_top(model: PreTrainedModel, paths: Sequence[str], trainable_layers: int | Literal["all"]) -> tuple[str, ...]:
    """Those of the paths that lie in the topmost blocks; all of them for `all`."""
    if trainable_layers == "all":
        return tuple(paths)
    starts = tuple(f"{block}." for block in top_blocks(model, trainable_layers))
    chosen = tuple(path for path in paths if path.startswith(starts))
    if not chosen:
        raise RecipeError(f"none of the named linear maps is in the top {trainable_layers} blocks", where=_WHERE)
    return chosen


def thaw(
    model: PreTrainedModel, trainable_layers: int | Literal["all"], train_embeddings: bool | Literal["auto"]
) -> None:
    """Freeze the model but for what full fine-tuning changes.

    `all`: every block and what stands between them and the head. A number: that many topmost blocks and nothing else.
    Embeddings (of tokens and of positions) and output head: as train_embeddings says; auto = where all blocks change.
    """
    everything = trainable_layers == "all"
    embeddings = everything if train_embeddings == "auto" else train_embeddings
    model.requires_grad_(everything)
    for path in top_blocks(model, trainable_layers) if not everything else ():
        model.get_submodule(path).requires_grad_(True)
    head = model.get_output_embeddings()
    for module in (*_tables(model), *([head] if isinstance(head, nn.Module) else [])):
        module.requires_grad_(embeddings)


def num_frozen_blocks(model: PreTrainedModel) -> int:
    """How many blocks, from the bottom, hold nothing that changes: their output is the same in every epoch where the
    embeddings are frozen too (0 where they are not)."""
    if any(p.requires_grad for table in _tables(model) for p in table.parameters()):
        return 0
    number = 0
    for path in block_paths(model):
        if any(p.requires_grad for p in model.get_submodule(path).parameters()):
            break
        number += 1
    return number


def describe_trainable(model: nn.Module) -> str:
    """One sentence: how many numbers change, and how many the model has without what was put beside it to be trained."""
    every = {id(p): p for p in model.parameters()}
    beside = {id(getattr(layer, part)) for layer in adapter_layers(model).values() for part in layer.parts}
    head = getattr(model, ATTACHED, None)
    beside |= {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    changing = sum(p.numel() for p in every.values() if p.requires_grad)
    own = (p for key, p in every.items() if key not in beside)
    total = sum(p.numel() * (1 if p.is_floating_point() else 2) for p in own)  # two 4-bit numbers a byte
    if any(every[key].requires_grad for key in beside):
        return f"{changing:,} parameters are trained, beside a model of {total:,} ({changing / total:.2%})"
    return f"{changing:,} of {total:,} parameters are trained ({changing / total:.2%})"


def _tables(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]
