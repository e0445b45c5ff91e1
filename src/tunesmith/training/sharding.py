"""Weights spread over the ranks (FSDP2): each keeps a part of every tensor, and a block is gathered while it computes.

Owns what is gathered together, in which dtype, and whether a model needs it at all. Refuses to know steps and files.

A unit is a transformer block; embeddings, last norm and output head are one more, kept gathered from the forward pass to the end
of the backward pass, because the loss reads the head itself. Gradients are summed over ranks, never averaged: the step
divides by its own count. Trainable weights are kept in fp32, as masters of a single rank are, and gathered in the dtype
the model computes in.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from tunesmith.errors import RecipeError
from tunesmith.model.freezing import block_paths
from tunesmith.model.low_rank import DoraLinear
from tunesmith.model.value_head import ATTACHED
from tunesmith.training.memory_bytes import master_bytes, weight_bytes
from tunesmith.training.ranks import Ranks

_SHARE_OF_A_DEVICE = 0.7  # for weights, gradients and optimiser; activations and the head's logits need the rest
_METHOD = "compute_hidden"


def choose_sharding(
    setting: bool | Literal["auto"], model: nn.Module, device: torch.device, *, quantised: bool
) -> bool:
    """runtime.shard_weights, with auto resolved: on where one CUDA device cannot hold weights, gradients and optimiser.

    RecipeError where it is asked for and cannot be.
    """
    where = "recipe.runtime.shard_weights"
    alone = Ranks.current().size == 1
    if setting is True and alone:
        raise RecipeError(
            "there is one training process, so nothing to spread weights over",
            where=where,
            hint="set runtime.num_processes, or start with torchrun",
        )
    if setting is True and quantised:
        raise RecipeError(
            "4-bit weights cannot be spread over processes", where=where, hint="set it to false, or use lora"
        )
    if setting != "auto":
        return setting
    if alone or quantised or device.type != "cuda":
        return False
    room = _SHARE_OF_A_DEVICE * torch.cuda.get_device_properties(device).total_memory
    return any(Ranks.current().gather(fixed_bytes(model) > room))  # all spread where one of them must


def fixed_bytes(model: nn.Module) -> int:
    """What a training holds beside activations: weights, fp32 masters, fp32 gradients and two fp32 moments."""
    num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return weight_bytes(model) + master_bytes(model) + 3 * 4 * num_trainable


def shard_model(model: PreTrainedModel, device: torch.device) -> None:
    """Spread the weights of a model, whole on every rank, over all ranks' devices.

    Inside `varlen_forward`: layers that were swapped keep their parameters as these are now. The model serves this
    training only: afterwards its layers are no longer whole.
    """
    mesh = init_device_mesh(device.type, (Ranks.current().size,))
    dtype = next(iter(model.get_input_embeddings().parameters())).dtype
    whole = _kept_whole(model, dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
    if dtype != torch.float32:
        options["mp_policy"] = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for path in block_paths(model):
        fully_shard(model.get_submodule(path), **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for layer in model.modules():
        if isinstance(layer, FSDPModule):
            layer.set_gradient_divide_factor(1.0)
            layer.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
            layer.set_reduce_scatter_unused_params(True)
    _gather_around_decoder(model)


def _kept_whole(model: nn.Module, dtype: torch.dtype) -> set[nn.Parameter]:
    """Small parameters. A scalar head: where nothing below it is trained, FSDP would not notice that it has a gradient. fp32
    magnitudes of a model that computes in less: gathered in its dtype they would lose what makes them fp32."""
    head = getattr(model, ATTACHED, None)
    found: set[nn.Parameter] = set(head.parameters()) if isinstance(head, nn.Module) else set()
    if dtype == torch.float32:
        return found
    return found | {layer.lora_magnitude_vector for layer in model.modules() if isinstance(layer, DoraLinear)}


def _gather_around_decoder(model: PreTrainedModel) -> None:
    """Steps call the decoder, not the model: what the model holds beside blocks must be gathered then too."""
    decoder: Any = model.get_decoder()
    surrounded: Any = model
    setattr(surrounded, _METHOD, lambda **inputs: decoder(**inputs))
    register_fsdp_forward_method(model, _METHOD)
    stand_in = _Decoder(decoder, getattr(surrounded, _METHOD))
    surrounded.get_decoder = lambda: stand_in


class _Decoder:
    """The decoder of a spread model, called so that everything it and the head need is there."""

    def __init__(self, decoder: Any, compute: Any) -> None:
        self._decoder, self._compute = decoder, compute

    def __call__(self, **inputs: Any) -> Any:
        return self._compute(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)
