"""Adapters: the low-rank map and its gradients, PEFT's files both ways, merging, and every refusal."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    merge_adapter,
    save_adapter,
    target_names,
)
from tunesmith.model.load import load_model

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def load(base_dir: Path) -> Callable[[], Any]:
    return lambda: load_model(base_dir, device="cpu", dtype=torch.float32)


def build_config(model: Any, *, wanted: tuple[str, ...] = ("all-linear",), alpha: float = 8.0) -> AdapterConfig:
    targets = choose_targets(model, wanted)
    return AdapterConfig(4, alpha, 0.0, targets, target_names(model, targets), "tiny-model")


def adapted(model: Any, config: AdapterConfig) -> Any:
    """The model with an adapter that changes its answers."""
    add_adapter(model, config, rng_seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def saved(model: Any, config: AdapterConfig, folder: Path) -> Path:
    save_adapter(folder, config, {name: p for name, p in model.named_parameters() if "lora_" in name})
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_new_adapter_changes_nothing_and_only_it_is_trainable(load: Any) -> None:
    model, plain = load(), load()
    add_adapter(model, build_config(model), rng_seed=3)
    assert torch.equal(logits(model), logits(plain))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 28 and all(".lora_" in name for name in trainable)


def test_the_draw_depends_on_the_seed_alone(load: Any) -> None:
    drawn = []
    for seed in (5, 5, 6):
        model = load()
        torch.rand(seed)
        add_adapter(model, build_config(model), rng_seed=seed)
        drawn.append(model.model.layers[1].mlp.down_proj.lora_A.clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert drawn[0].abs().max() <= 128**-0.5 < 1.1 * drawn[0].abs().max()  # Kaiming uniform over 128 inputs


def test_peft_loads_the_files_and_gives_the_same_logits(load: Any, tmp_path: Path) -> None:
    model = load()
    config = build_config(model)
    folder = saved(adapted(model, config), config, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(load(), folder).eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(load())).abs().max() > 0.01
    keys = sorted(load_file(folder / "adapter_model.safetensors"))
    assert keys[0] == "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields.keys() <= LoraConfig().to_dict().keys()
    assert fields["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (4, 8, "tiny-model")


def test_files_that_peft_wrote_are_loaded(load: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = get_peft_model(load(), LoraConfig(r=3, lora_alpha=9, target_modules=["q_proj", "v_proj"]))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path)
    model = load()
    config = load_adapter(model, tmp_path)
    assert (config.rank, config.scale, len(config.targets)) == (3, 3.0, 4)
    torch.testing.assert_close(logits(model), logits(theirs.eval()), atol=1e-5, rtol=1e-5)


def test_what_is_read_back_equals_what_was_saved_bit_for_bit(load: Any, tmp_path: Path) -> None:
    model, fresh = load(), load()
    config = build_config(model, wanted=("q_proj", "layers.1.mlp.up_proj"))
    folder = saved(adapted(model, config), config, tmp_path)
    found = load_adapter(fresh, folder)
    assert torch.equal(logits(fresh), logits(model))
    assert found == config and len(config.targets) == 3
    assert not any(p.requires_grad for p in fresh.parameters())


def test_the_files_bytes_depend_on_the_weights_alone(load: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = load()
        config = build_config(model)
        saved(adapted(model, config), config, tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_names_are_short_only_where_they_mean_the_same_layers(load: Any) -> None:
    model = load()
    every = choose_targets(model, ("q_proj",))
    assert every == ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    assert target_names(model, every) == ("q_proj",)
    assert target_names(model, every[1:]) == ("model.layers.1.self_attn.q_proj",)


def test_merged_weights_give_the_adapters_logits_and_plain_layers(load: Any) -> None:
    model = load()
    names = set(model.state_dict())
    adapted(model, build_config(model))
    expected = logits(model)
    merged = merge_adapter(model)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == names and not adapter_layers(merged)


def test_a_model_without_an_adapter_cannot_be_merged(load: Any) -> None:
    with pytest.raises(ModelError, match="no adapter to merge"):
        merge_adapter(load())


def test_an_unknown_target_is_named_with_the_nearest_one(load: Any) -> None:
    with pytest.raises(RecipeError, match="no linear map named 'q_prj'; it has down_proj, gate_proj") as caught:
        choose_targets(load(), ("q_prj",))
    assert caught.value.hint == "did you mean 'q_proj'?"
    assert caught.value.where == "recipe.train.lora_target_modules"


@pytest.mark.parametrize("wanted", [("all-linear", "q_proj"), ()])
def test_all_linear_stands_alone(load: Any, wanted: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="alone"):
        choose_targets(load(), wanted)


def test_the_output_head_gets_no_adapter(load: Any) -> None:
    model = load()
    assert not any("lm_head" in path for path in choose_targets(model, ("all-linear",)))
    with pytest.raises(RecipeError, match="lm_head"):
        choose_targets(model, ("lm_head",))


def test_an_adapter_that_lacks_a_matrix_is_refused(load: Any, tmp_path: Path) -> None:
    model = load()
    config = build_config(model)
    folder = saved(adapted(model, config), config, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    removed = sorted(tensors)[0]
    tensors.pop(removed)
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    with pytest.raises(ModelError, match=r"has 27 tensors, expected 28; missing model\.layers\.0\.mlp\.down_proj"):
        load_adapter(load(), folder)


def test_an_adapter_of_another_size_is_refused(load: Any, tmp_path: Path) -> None:
    model = load()
    config = build_config(model)
    folder = saved(adapted(model, config), config, tmp_path)
    edit(folder, r=5)
    with pytest.raises(ModelError, match=r"lora_A is \(4, 64\), expected \(5, 64\)"):
        load_adapter(load(), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"has 28 tensors, expected 42; missing .*lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_bias: True` is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa` is not supported"),
        ({"bias": "all"}, "bias: all` is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "expected a LoRA adapter"),
        ({"r": None}, "`r` is missing"),
        ({"target_modules": ["somewhere"]}, "no linear map named 'somewhere'"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    load: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = load()
    config = build_config(model)
    folder = saved(adapted(model, config), config, tmp_path)
    edit(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_adapter(load(), folder)


def test_missing_and_damaged_files_are_named(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json: the file is missing"):
        load_adapter(load(), tmp_path)
    model = load()
    config = build_config(model)
    folder = saved(adapted(model, config), config, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no whole safetensors file"):
        load_adapter(load(), folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: the file is missing"):
        load_adapter(load(), folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        load_adapter(load(), folder)
