"""A base model in 4 bits under an adapter: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

Owns what bitsandbytes is asked for (NF4, double quantisation, products in bf16), what must be there for it, and the
weights that a 4-bit base stands for. Refuses to know adapters' files and training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import EXTRAS, MissingExtra, RecipeError

PACKAGE = "bitsandbytes"
COMPUTE_DTYPE = torch.bfloat16
_WHERE = "recipe.train.method"


def check_quantisation(device: torch.device) -> None:
    """RecipeError where the device has no 4-bit kernels, MissingExtra where bitsandbytes is not installed."""
    if device.type != "cuda":
        raise RecipeError(
            f"`method: qlora` trains on a CUDA device, and this training would run on the {device.type}",
            where=_WHERE,
            hint="take `method: lora`: without a graphics card 4 bits save memory but no time; or name runtime.device",
        )
    require_package("`train.method: qlora`")


def require_package(purpose: str) -> None:
    """MissingExtra where bitsandbytes is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise MissingExtra(PACKAGE, EXTRAS[PACKAGE], purpose)


def loading_options(device: str) -> dict[str, Any]:
    """What from_pretrained is given so that every linear map but the output head is loaded in 4 bits."""
    require_package("a base model in 4 bits")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPE,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def dequantise(layer: nn.Module) -> torch.Tensor:
    """(out, in) the bf16 values that a 4-bit map of bitsandbytes stands for, in a tensor of their own."""
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    weight: Any = layer.weight
    return functional.dequantize_4bit(weight.data, weight.quant_state).to(COMPUTE_DTYPE)


@torch.no_grad()
def round_like_4_bits(model: nn.Module, paths: Sequence[str]) -> None:
    """Give these linear maps the values that their 4-bit form stands for, in place.

    An adapter was trained beside these values: it is merged into them, and not into those of the file (that would
    add the rounding error of 4 bits, with the opposite sign, to what was learnt).
    """
    require_package("the base model of a `qlora` checkpoint")
    from bitsandbytes import functional  # pyright: ignore[reportMissingImports]

    for path in paths:
        layer: Any = model.get_submodule(path)
        transposed = isinstance(layer, Conv1D)  # its 4-bit form is that of (out, in)
        weight = (layer.weight.t() if transposed else layer.weight).to(COMPUTE_DTYPE).contiguous()
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        rounded = functional.dequantize_4bit(packed, state).to(COMPUTE_DTYPE)
        layer.weight.copy_(rounded.t() if transposed else rounded)
