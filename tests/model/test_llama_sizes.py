"""Sizes of LLaMA releases: params.json and config.json say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import ModelError
from tunesmith.model.llama_sizes import ffn_dim, params_of, sizes_of_config, sizes_of_params


def test_scaled_positions_of_llama_3_1_become_a_flag_and_come_back(tmp_path: Path):
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for factor, dim, extra in ((8.0, 4096, {}), (32.0, 2048, {}), (16.0, 2048, {"rope_scaling_factor": 16.0})):
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **scaling}
        config = {
            "architectures": ["LlamaForCausalLM"], "hidden_size": dim, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_parameters": rope,
        }  # fmt: skip
        sizes = sizes_of_config(config, Path("config.json"))
        params = params_of(sizes)
        assert {k: v for k, v in params.items() if k.startswith(("use_", "rope_s"))} == {
            "use_scaled_rope": True,
            **extra,
        }
        shapes = {
            "output.weight": (128256, dim), "tok_embeddings.weight": (128256, dim),
            "layers.0.feed_forward.w1.weight": (8192, dim),
        }  # fmt: skip
        again = sizes_of_params(params, shapes, 1, None, Path("params.json"))
        assert again.rope_parameters() == rope
        assert (again.context_length, again.context_is_guessed) == (131072, True)
    with pytest.raises(ModelError, match="no rotary scaling of type 'yarn'"):
        sizes_of_config({**config, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, Path("config.json"))


PUBLISHED = [  # dim, feed-forward width, multiple_of, multiplier: as the releases' params.json have them
    (4096, 11008, 256, None), (5120, 13824, 256, None), (6656, 17920, 256, None), (8192, 22016, 256, None),
    (8192, 28672, 4096, 1.3), (4096, 14336, 1024, 1.3), (2048, 8192, 256, 1.5), (3072, 8192, 256, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("dim", "width", "multiple_of", "multiplier"), PUBLISHED)
def test_the_feed_forward_width_follows_the_published_rule_and_a_rule_is_found_for_every_width(
    dim: int, width: int, multiple_of: int, multiplier: float | None
):
    assert ffn_dim(dim, multiple_of, multiplier) == width
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": dim, "num_hidden_layers": 1, "num_attention_heads": 32,
        "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
    }  # fmt: skip
    for odd in (width, width + 1, width - 37):
        params = params_of(sizes_of_config({**config, "intermediate_size": odd}, Path("config.json")))
        assert ffn_dim(dim, params["multiple_of"], params.get("ffn_dim_multiplier")) == odd
        if odd == width and multiplier is None:
            assert (params["multiple_of"], params.get("ffn_dim_multiplier")) == (256, None)


def test_a_size_that_is_missing_is_named_with_its_key():
    with pytest.raises(ModelError, match=r"params.json: expected a number under `n_heads`, found None"):
        sizes_of_params({"dim": 64}, {}, 1, None, Path("params.json"))


@pytest.mark.parametrize(("theta", "tokens"), [(None, 2048), (500000.0, 8192), (1000000.0, 16384)])
def test_the_context_length_follows_from_the_rotary_base_where_it_can(theta: float | None, tokens: int):
    params = {"dim": 64, "n_heads": 4, "n_layers": 1, **({"rope_theta": theta} if theta else {})}
    sizes = sizes_of_params(params, {}, 1, None, Path("params.json"))
    assert (sizes.context_length, sizes.context_is_guessed) == (tokens, True)
    assert sizes_of_params(params, {}, 1, 4096, Path("params.json")).context_length == 4096
