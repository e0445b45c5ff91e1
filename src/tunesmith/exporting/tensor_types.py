"""Which GGUF type each tensor gets, and turning its values into that type's bytes. Knows names and shapes, no files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from gguf import quants

from tunesmith.errors import ExportError
from tunesmith.exporting.kquants import BLOCK, quantize_q4_k, quantize_q6_k

_SMALL_BLOCK = 32  # values in a block of Q8_0 and Q5_0
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Quantisation:
    """A file format: its GGUF number, and which type a matrix should have."""

    name: str  # "q8_0"
    file_type: FileType
    type_of: Callable[[str, int, bool], Type]  # (tensor name, number of blocks of the model, tied output) -> type


def _f16(name: str, num_blocks: int, tied: bool) -> Type:
    return Type.F16


def _q8_0(name: str, num_blocks: int, tied: bool) -> Type:
    return Type.Q8_0


def _q4_k_m(name: str, num_blocks: int, tied: bool) -> Type:
    """llama.cpp's mixture: six bits for the output head and for half of the value and down projections, which lose
    most by rounding; four for the rest."""
    if name == ("token_embd.weight" if tied else "output.weight"):
        return Type.Q6_K
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if found:
        block, eighth = int(found[1]), num_blocks // 8
        if block < eighth or block >= 7 * num_blocks // 8 or (block - eighth) % 3 == 2:
            return Type.Q6_K
    return Type.Q4_K


QUANTISATIONS = {
    "f16": Quantisation("f16", FileType.MOSTLY_F16, _f16),
    "q8_0": Quantisation("q8_0", FileType.MOSTLY_Q8_0, _q8_0),
    "q4_k_m": Quantisation("q4_k_m", FileType.MOSTLY_Q4_K_M, _q4_k_m),
}


def choose_type(quantisation: Quantisation, name: str, shape: tuple[int, ...], num_blocks: int, tied: bool) -> Type:
    """The type of one tensor. Vectors stay fp32. A row that is no multiple of the block falls back as in llama.cpp:
    Q4_K to Q5_0, Q6_K to Q8_0 (SmolLM2-135M is 576 wide, so only its down projections are K-quants), then to F16."""
    if len(shape) < 2:
        return Type.F32
    wanted = quantisation.type_of(name, num_blocks, tied)
    width = shape[-1]
    if width % BLOCK:
        wanted = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}.get(wanted, wanted)
    if width % _SMALL_BLOCK and wanted is not Type.F16:
        return Type.F16
    return wanted


def encode(values: np.ndarray, kind: Type, name: str) -> np.ndarray:
    """float32 values as the bytes of a type: fp32 or fp16 array, or uint8 rows of blocks."""
    if not np.isfinite(values).all():
        raise ExportError(f"the tensor {name} holds values that are not finite", hint="the training run went wrong")
    if kind is Type.F32:
        return values
    if kind is Type.F16:
        if np.abs(values).max(initial=0.0) > _HALF_MAX:
            raise ExportError(
                f"the tensor {name} holds values beyond {_HALF_MAX:,.0f}, which fp16 cannot",
                hint="export gguf-q8_0 instead",
            )
        return values.astype(np.float16)
    if kind is Type.Q4_K:
        return quantize_q4_k(values)
    if kind is Type.Q6_K:
        return quantize_q6_k(values)
    return quants.quantize(values, kind)
