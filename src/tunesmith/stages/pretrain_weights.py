"""The weights of a pre-training: which of them are trained after the embeddings, how they move between models, how they are
written. Knows no text and no steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.model.adapters import (
    AdapterConfig,
    add_adapter,
    choose_targets,
    merge_adapter,
    store_transposed,
    target_names,
)
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.load import load_model
from tunesmith.model.vocabulary.extension import Extension
from tunesmith.model.vocabulary.rows import grow_rows, matrices
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.store import write_atomic
from tunesmith.training.saving import load_stored_dtype


def make_trainable(model: PreTrainedModel, section: Pretrain) -> AdapterConfig | None:
    """Everything (None), or the matrices and an adapter on every linear map, as Chinese-LLaMA's second stage."""
    if section.method == "full":
        model.requires_grad_(True)
        return None
    targets = choose_targets(model, ("all-linear",))
    adapter = AdapterConfig(
        rank=section.lora_rank,
        alpha=section.lora_alpha,
        dropout=0.0,
        targets=targets,
        target_names=target_names(model, targets),
        base_model="",  # the adapter is merged, never written
        fan_in_fan_out=store_transposed(model, targets),
    )
    add_adapter(model, adapter, section.rng_seed)
    for matrix in matrices(model):
        matrix.requires_grad_(True)
    return adapter


def put_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Weights by name, in new parameters: those that were trained still belong to the optimiser of their training, which
    would take away their gradients."""
    for name, tensor in weights.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(tensor.detach().clone().to(old.device, old.dtype)))
    model.tie_weights()


def write_model(
    base_dir: Path,
    extension: Extension,
    adapter: AdapterConfig | None,
    rng_seed: int,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
) -> None:
    """The whole model in the dtype of the base model's files, into the folder that has its tokenizer.

    The masters go into a fresh fp32 copy, so that nothing that was not trained changes, and an adapter is merged without the
    rounding of the arithmetic it was trained in.
    """
    stored = load_stored_dtype(base_dir)
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    grow_rows(model, extension)
    if adapter is not None:
        add_adapter(model, adapter, rng_seed)
    put_weights(model, weights)
    if adapter is not None:
        merge_adapter(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.to(stored)
    model.config.dtype = stored
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    generation = folder / "generation_config.json"
    stop_ids = generation.read_bytes() if generation.is_file() else None
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size="4GB")
    if stop_ids is not None:
        write_atomic(generation, stop_ids)
