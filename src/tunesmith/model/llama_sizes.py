"""Sizes of a LLaMA: params.json as Meta publishes it, config.json as transformers reads it, and one form between them.

Knows facts about the releases, no files and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError

_LLAMA_3_THETA = 500_000.0
_CODE_LLAMA_THETA = 1_000_000.0
_LLAMA_3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_SCALING_FACTOR, _SMALL_SCALING_FACTOR = 8.0, 32.0  # Llama 3.1; Llama 3.2 1B and 3B, the ones of at most 3,072 columns
_SMALL_DIM = 3072
_MULTIPLES = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class LlamaSizes:
    """Everything that is not a weight."""

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    scaling_factor: float | None  # of Llama 3.1 and later
    context_length: int
    context_is_guessed: bool
    embedding_axis: int  # along which ranks share the embedding: 1 (columns) in Llama 1 and 2, 0 (rows) in Llama 3

    @property
    def head_dim(self) -> int:
        """Columns of one head."""
        return self.dim // self.num_heads

    @property
    def is_llama_3(self) -> bool:
        """Whether this is of the third generation, which changed the tokenizer and how ranks share the embedding."""
        return self.rope_theta == _LLAMA_3_THETA or self.scaling_factor is not None

    def shape_of(self, hf_name: str) -> tuple[int, ...]:
        """Shape of a tensor by its transformers name."""
        kind = hf_name.removesuffix(".weight").rpartition(".")[2]
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        matrices = {
            "embed_tokens": (self.vocab_size, self.dim),
            "lm_head": (self.vocab_size, self.dim),
            "q_proj": (queries, self.dim),
            "k_proj": (keys, self.dim),
            "v_proj": (keys, self.dim),
            "o_proj": (self.dim, queries),
            "gate_proj": (self.ffn_dim, self.dim),
            "up_proj": (self.ffn_dim, self.dim),
            "down_proj": (self.dim, self.ffn_dim),
        }
        return matrices.get(kind, (self.dim,))

    def rotary_frequencies(self) -> torch.Tensor:
        """(head_dim / 2,) what Llama 1 and 2 files hold as rope.freqs."""
        return 1.0 / self.rope_theta ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)

    def rope_parameters(self) -> dict[str, Any]:
        """The field of config.json."""
        if self.scaling_factor is None:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        scaling = {"rope_type": "llama3", "rope_theta": self.rope_theta, "factor": self.scaling_factor}
        return {**scaling, **_LLAMA_3_SCALING}


def sizes_of_params(
    params: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    num_shards: int,
    context_length: int | None,
    where: Path,
) -> LlamaSizes:
    """From params.json and the shapes in the first shard, which say what it leaves out (vocabulary, feed-forward width).

    ModelError where a size is missing or no number.
    """
    dim, num_heads = _number(params, "dim", where), _number(params, "n_heads", where)
    num_kv_heads = num_heads if params.get("n_kv_heads") is None else _number(params, "n_kv_heads", where)
    _check_heads(dim, num_heads, num_kv_heads, where)
    theta = _real(params, "rope_theta", 10_000.0, where)
    factor = _scaling_factor(params, dim, where)
    counted = params.get("vocab_size") in (None, -1)  # as Meta publishes it
    llama_3 = theta == _LLAMA_3_THETA or factor is not None
    embedding = shapes.get("tok_embeddings.weight") or (0, 0)
    by_rows = llama_3 if num_shards == 1 else embedding[-1] == dim
    return LlamaSizes(
        dim=dim,
        ffn_dim=_rows(shapes, "layers.0.feed_forward.w1.weight") * num_shards,
        num_layers=_number(params, "n_layers", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=_rows(shapes, "output.weight") * num_shards if counted else _number(params, "vocab_size", where),
        norm_eps=_real(params, "norm_eps", 1e-5, where),
        rope_theta=theta,
        scaling_factor=factor,
        context_length=context_length or _usual_context(theta, factor),
        context_is_guessed=context_length is None,
        embedding_axis=0 if by_rows else 1,
    )


def sizes_of_config(config: Mapping[str, Any], where: Path) -> LlamaSizes:
    """From config.json. ModelError for a model that the original code cannot run."""
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else "?"
    if architecture != "LlamaForCausalLM":
        raise ModelError(f"the original LLaMA code runs LlamaForCausalLM, this is {architecture}", where=str(where))
    dim, num_heads = _number(config, "hidden_size", where), _number(config, "num_attention_heads", where)
    kv_heads = config.get("num_key_value_heads")
    num_kv_heads = num_heads if kv_heads is None else _number(config, "num_key_value_heads", where)
    _check_heads(dim, num_heads, num_kv_heads, where)
    faults = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "head_dim": (config.get("head_dim") or dim // num_heads) * num_heads != dim,
    }
    for key, wrong in faults.items():
        if wrong:
            raise ModelError(f"the original LLaMA code has no place for {key}: {config[key]}", where=str(where))
    rope = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key) or {}
        if not isinstance(given, dict):
            raise ModelError(f"expected an object under `{key}`, found {given!r}", where=str(where))
        rope |= given
    theta = _real(rope, "rope_theta", 10_000.0, where)
    factor = _llama_3_factor(rope, where)
    return LlamaSizes(
        dim=dim,
        ffn_dim=_number(config, "intermediate_size", where),
        num_layers=_number(config, "num_hidden_layers", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        vocab_size=_number(config, "vocab_size", where),
        norm_eps=_real(config, "rms_norm_eps", 1e-6, where),
        rope_theta=theta,
        scaling_factor=factor,
        context_length=_number(config, "max_position_embeddings", where),
        context_is_guessed=False,
        embedding_axis=0 if theta == _LLAMA_3_THETA or factor is not None else 1,
    )


def params_of(sizes: LlamaSizes) -> dict[str, Any]:
    """params.json of these sizes, with the keys that the release's own code knows: it refuses others."""
    multiple_of, multiplier = _ffn_rule(sizes.dim, sizes.ffn_dim)
    params: dict[str, Any] = {"dim": sizes.dim, "n_layers": sizes.num_layers, "n_heads": sizes.num_heads}
    if sizes.num_kv_heads != sizes.num_heads:
        params["n_kv_heads"] = sizes.num_kv_heads
    params |= {"vocab_size": sizes.vocab_size, "multiple_of": multiple_of}
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    params["norm_eps"] = sizes.norm_eps
    if sizes.rope_theta != 10_000.0:
        params["rope_theta"] = sizes.rope_theta
    if sizes.scaling_factor is not None:
        params["use_scaled_rope"] = True
        if sizes.scaling_factor != _usual_factor(sizes.dim):
            params["rope_scaling_factor"] = sizes.scaling_factor
    return params


def ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward layer as the original code computes it: 2/3 of 4 dim, times the multiplier, rounded up."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * math.ceil(width / multiple_of)


def _ffn_rule(dim: int, width: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) that give this width. Without a multiplier where that can be: Llama 1 knows none."""
    for multiple_of in (256, *_MULTIPLES):  # 256 is what Llama 1 and 2 publish
        if ffn_dim(dim, multiple_of, None) == width:
            return multiple_of, None
    multiple_of = next(multiple for multiple in _MULTIPLES if width % multiple == 0)
    return multiple_of, (width + 0.5) / int(2 * (4 * dim) / 3)  # half a column more: rounding down hits the width


def _usual_context(theta: float, factor: float | None) -> int:
    """Tokens the releases with such sizes were trained for. Llama 2 (4,096) has the sizes of Llama 1 and is not told apart."""
    if factor is not None:
        return 131_072
    return {_LLAMA_3_THETA: 8192, _CODE_LLAMA_THETA: 16_384}.get(theta, 2048)


def _scaling_factor(params: Mapping[str, Any], dim: int, where: Path) -> float | None:
    return _real(params, "rope_scaling_factor", _usual_factor(dim), where) if params.get("use_scaled_rope") else None


def _usual_factor(dim: int) -> float:
    return _SMALL_SCALING_FACTOR if dim <= _SMALL_DIM else _SCALING_FACTOR


def _llama_3_factor(rope: Mapping[str, Any], where: Path) -> float | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    known = kind == "llama3" and all(rope.get(key) == value for key, value in _LLAMA_3_SCALING.items())
    if not known:
        raise ModelError(
            f"the original LLaMA code has no rotary scaling of type {kind!r} with these values", where=str(where)
        )
    return _real(rope, "factor", _SCALING_FACTOR, where)


def _check_heads(dim: int, num_heads: int, num_kv_heads: int, where: Path) -> None:
    if dim % (2 * num_heads) or num_heads % num_kv_heads:
        raise ModelError(
            f"{dim:,} columns, {num_heads:,} heads and {num_kv_heads:,} key-value heads do not fit each other",
            where=str(where),
            hint="heads have an even number of columns each, and share key-value heads evenly",
        )


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """0 where it is no matrix, which the check of every shape then says."""
    shape = shapes.get(name, ())
    return shape[0] if len(shape) == 2 else 0


def _number(params: Mapping[str, Any], key: str, where: Path) -> int:
    value = params.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"expected a number under `{key}`, found {value!r}", where=str(where))
    return value


def _real(fields: Mapping[str, Any], key: str, usual: float, where: Path) -> float:
    value = usual if fields.get(key) is None else fields[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ModelError(f"expected a number above 0 under `{key}`, found {value!r}", where=str(where))
    return float(value)
