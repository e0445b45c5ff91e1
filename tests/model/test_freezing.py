"""What changes and what stands still: blocks from the top, embeddings and head by choice, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen3Config,
)

from tunesmith.errors import RecipeError
from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
from tunesmith.model.freezing import block_paths, describe_trainable, num_frozen_blocks, thaw, top_blocks, within_top
from tunesmith.model.value_head import attached, new_value_head

NEW: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
OLD: dict[str, Any] = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**NEW),
    "qwen3": Qwen3Config(**NEW, head_dim=8),
    "gemma3": Gemma3TextConfig(**NEW, head_dim=8),
    "phi": PhiConfig(**NEW),
    "pythia": GPTNeoXConfig(**NEW),
    "gpt2": GPT2Config(**OLD),
    "gpt_bigcode": GPTBigCodeConfig(**OLD),
    "bloom": BloomConfig(vocab_size=50, hidden_size=16, n_layer=3, n_head=2),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


def trainable(model: PreTrainedModel) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_blocks_are_found_bottom_to_top(model: PreTrainedModel) -> None:
    paths = block_paths(model)
    assert [path.rpartition(".")[2] for path in paths] == ["0", "1", "2"]
    assert top_blocks(model, 2) == paths[1:] and top_blocks(model, "all") == paths
    linear = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    assert all(path.startswith(f"{paths[2]}.") for path in within_top(model, linear, 1))


def test_the_top_blocks_and_nothing_else_change(model: PreTrainedModel) -> None:
    thaw(model, 1, "auto")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(input_ids=torch.arange(1, 9)[None], labels=torch.arange(1, 9)[None]).loss.backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(f"{block_paths(model)[2]}.") for name in moved)
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable(model))
    assert num_frozen_blocks(model) == 2


def test_embeddings_and_head_are_a_choice_of_their_own(model: PreTrainedModel) -> None:
    tables = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    head: Any = model.get_output_embeddings()
    outer = {name for name, p in model.named_parameters() if id(p) in tables or p is head.weight}
    assert outer
    thaw(model, "all", "auto")
    everything = {name for name, _ in model.named_parameters()}
    assert trainable(model) == everything and num_frozen_blocks(model) == 0
    thaw(model, "all", False)
    assert not trainable(model) & outer and len(trainable(model)) >= len(everything) - len(outer) - 1  # a head's bias
    thaw(model, 1, True)
    assert outer <= trainable(model) and num_frozen_blocks(model) == 0


def test_more_blocks_than_there_are_and_maps_outside_of_them_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(RecipeError, match="the model has 3 blocks, so the top 4 cannot be trained"):
        thaw(model, 4, "auto")
    with pytest.raises(RecipeError, match="none of the named linear maps is in the top 1 blocks"):
        within_top(model, [f"{block_paths(model)[0]}.something"], 1)


def test_the_share_that_is_trained_is_said_with_tied_weights_counted_once() -> None:
    config = LlamaConfig(**NEW, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    thaw(model, 1, "auto")
    one = sum(p.numel() for p in model.model.layers[2].parameters())
    total = 3 * one + 50 * 16 + 16
    assert describe_trainable(model) == f"{one:,} of {total:,} parameters are trained ({one / total:.2%})"


def test_what_is_trained_beside_a_model_is_none_of_its_parameters() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**NEW, tie_word_embeddings=True))
    own = sum(p.numel() for p in model.parameters())
    targets = choose_targets(model, ("q_proj",))
    names = target_names(model, targets)
    add_adapter(model, AdapterConfig(4, 8.0, 0.0, targets, names, "small", use_dora=True), 1)
    parts = 3 * (4 * 16 + 16 * 4 + 16)
    said = f"{parts:,} parameters are trained, beside a model of {own:,} ({parts / own:.2%})"
    assert describe_trainable(model) == said
    with attached(model, new_value_head(16, 1)):
        assert describe_trainable(model).startswith(
            f"{parts + 17:,} parameters are trained, beside a model of {own:,} ("
        )
