"""A random model of every architecture that training has to serve: two to four blocks, 48 wide, four heads of 12.

Sliding windows reach seven tokens, so that ordinary test samples are longer. Weights are drawn wide and norms and biases
away from one and zero, so that whatever is left out shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tunesmith.training.batches import Samples

VOCABULARY = 97
WINDOW = 7

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": None}),
    "mistral, windows": ("mistral", {**_GROUPED, "sliding_window": WINDOW}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2, windows above layer 1": (
        "qwen2",
        {
            **_GROUPED,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi": ("phi", {**_GROUPED, **_NO_DROPOUT, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("phi3", {**_GROUPED, **_NO_DROPOUT, "sliding_window": WINDOW, "partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", {**_NO_DROPOUT, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode, one key head": ("gpt_bigcode", {**_NO_DROPOUT, "multi_query": True}),
    "gpt_bigcode": ("gpt_bigcode", {**_NO_DROPOUT, "multi_query": False}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "bloom, six heads": ("bloom", {"n_layer": 2, "n_head": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "pythia": ("gpt_neox", {"rotary_pct": 0.5, "use_parallel_residual": True}),
    "gpt_neox, serial": ("gpt_neox", {"rotary_pct": 1.0, "use_parallel_residual": False}),
    "starcoder2": (
        "starcoder2",
        {**_GROUPED, "sliding_window": WINDOW, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    ),
    "olmo2": ("olmo2", _GROUPED),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
}


def build_tiny(name: str, **changes: Any) -> Any:
    """A model in eval mode, fp32, of an entry of TINY."""
    kind, special = TINY[name]
    return build_config(kind, **{**special, **changes})


def build_config(kind: str, **special: Any) -> Any:
    """A model in eval mode, fp32, of any type that transformers knows."""
    sizes = dict(_SIZES)
    if kind == "bloom":
        del sizes["num_attention_heads"], sizes["num_hidden_layers"]  # it knows them by other names
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**sizes, **special})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def branching_sequences(longest: int = 40) -> list[np.ndarray]:
    """Token ids: three samples under one beginning of 12, two of which go on alike for 9 more, and two by themselves."""
    rng = np.random.default_rng(4)
    draw = lambda count: rng.integers(3, VOCABULARY, count).astype(np.int32)  # noqa: E731
    opening, turn = draw(12), draw(9)
    return [
        np.concatenate([opening, turn, draw(longest - 21)]),
        np.concatenate([opening, draw(6)]),
        draw(23),
        np.concatenate([opening, turn, draw(4)]),
        draw(3),
    ]


def as_samples(sequences: Sequence[np.ndarray]) -> Samples:
    """The second half of each sample is supervised."""
    return Samples(
        input_ids=np.concatenate(sequences),
        loss_mask=np.concatenate([np.arange(len(ids)) >= (len(ids) + 1) // 2 for ids in sequences]).astype(np.uint8),
        lengths=np.array([len(ids) for ids in sequences], dtype=np.int64),
        ids=tuple(f"row-{index}" for index in range(len(sequences))),
    )
