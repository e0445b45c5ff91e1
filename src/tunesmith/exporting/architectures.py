"""Transformers' names of tensors and sizes, and llama.cpp's, for the architectures a GGUF file can be written for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, TensorNameMap, get_tensor_name_map

from tunesmith.errors import ExportError, nearest


@dataclass(frozen=True)
class Architecture:
    """How one transformers class is written."""

    gguf: MODEL_ARCH
    permuted: bool = False  # llama.cpp's `llama` wants q and k rows interleaved by rotary pair


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(MODEL_ARCH.LLAMA, permuted=True),
    "MistralForCausalLM": Architecture(MODEL_ARCH.LLAMA, permuted=True),
    "Qwen2ForCausalLM": Architecture(MODEL_ARCH.QWEN2),
    "Qwen3ForCausalLM": Architecture(MODEL_ARCH.QWEN3),
}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_OWN_YARN = ("attention_factor", "mscale", "mscale_all_dim")  # llama.cpp has the paper's: 0.1 ln(factor) + 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, from its config.json."""

    architecture: Architecture
    config: dict[str, Any]

    @property
    def num_blocks(self) -> int:
        """Transformer blocks."""
        return self.config["num_hidden_layers"]

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.config["num_attention_heads"]

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        return self.config.get("num_key_value_heads") or self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.config.get("head_dim") or self.config["hidden_size"] // self.num_heads

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding table."""
        return bool(self.config.get("tie_word_embeddings"))

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary parameters under transformers 5's names."""
        old = {"rope_theta": self.config.get("rope_theta", 10000.0), **(self.config.get("rope_scaling") or {})}
        parameters = {**old, **(self.config.get("rope_parameters") or {})}
        parameters["rope_type"] = parameters.get("rope_type") or parameters.get("type") or "default"
        return parameters


def shape_of(config: dict[str, Any], where: Path) -> Shape:
    """Sizes of a model that can be written. ExportError for one that cannot, before any work."""
    name = (config.get("architectures") or ["?"])[0]
    if name not in ARCHITECTURES:
        close = nearest(name, ARCHITECTURES)
        raise ExportError(
            f"a GGUF file cannot be written for {name}",
            where=str(where),
            hint=f"supported: {', '.join(ARCHITECTURES)}{f' (nearest: {close})' if close else ''}; "
            "the safetensors format works for every model",
        )
    shape = Shape(ARCHITECTURES[name], config)
    if shape.rope["rope_type"] not in _ROPE_TYPES:
        raise ExportError(
            f"rotary scaling of type {shape.rope['rope_type']!r} cannot be written into a GGUF file",
            where=str(where),
            hint=f"supported: {', '.join(_ROPE_TYPES)}",
        )
    odd = [key for key in _OWN_YARN if shape.rope["rope_type"] == "yarn" and shape.rope.get(key) is not None]
    if odd or (shape.rope["rope_type"] == "yarn" and shape.rope.get("truncate") is False):
        raise ExportError(
            f"rotary scaling yarn with {odd[0] if odd else 'truncate: false'} cannot be written into a GGUF file",
            where=str(where),
            hint="the safetensors format works for every model",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ExportError(f"the activation {config['hidden_act']!r} has no place in a GGUF file", where=str(where))
    if config.get("use_sliding_window") or (name == "MistralForCausalLM" and config.get("sliding_window")):
        raise ExportError("sliding-window attention is not written into GGUF files yet", where=str(where))
    return shape


def add_shape(writer: GGUFWriter, shape: Shape) -> None:
    """Sizes into a GGUF file's metadata."""
    config, rope = shape.config, shape.rope
    writer.add_block_count(shape.num_blocks)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(shape.head_dim)
    if shape.head_dim * shape.num_heads != config["hidden_size"]:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def name_map(shape: Shape) -> TensorNameMap:
    """From transformers' tensor names to llama.cpp's."""
    return get_tensor_name_map(shape.architecture.gguf, shape.num_blocks)


def arrange(values: np.ndarray, hf_name: str, shape: Shape) -> np.ndarray:
    """The tensor in the order llama.cpp keeps it: q and k of `llama` rotate neighbouring rows, not halves of a head."""
    if not shape.architecture.permuted or ".self_attn." not in hf_name:
        return values
    for part, heads in (("q_proj.", shape.num_heads), ("k_proj.", shape.num_kv_heads)):
        if part in hf_name:
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values


def extra_tensors(shape: Shape) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors that transformers computes and llama.cpp reads: Llama 3's stretched rotary frequencies, as divisors."""
    rope = shape.rope
    if rope["rope_type"] != "llama3":
        return
    dim = shape.head_dim
    frequencies = float(rope["rope_theta"]) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    lengths = 2 * math.pi / frequencies  # wavelengths, in tokens
    context = rope["original_max_position_embeddings"]
    low, high, factor = float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), float(rope["factor"])
    smooth = np.clip((context / lengths - low) / (high - low), 0, 1)  # 1: left alone, 0: stretched by the whole factor
    yield "rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
