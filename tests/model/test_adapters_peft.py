"""Our adapters beside PEFT's: the same files, logits and gradients for LoRA, rsLoRA and DoRA, on Linear and Conv1D."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, GPTBigCodeConfig, GPTBigCodeForCausalLM

from small_models import build_model
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    merge_adapter,
    save_adapter,
    store_transposed,
    target_names,
)
from tunesmith.model.freezing import within_top
from tunesmith.model.load import load_model

IDS = torch.arange(3, 40)[None]
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
BASES = ("llama", "gpt2", "gpt_bigcode")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    sizes: dict[str, Any] = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    torch.manual_seed(0)
    for name, model in (
        ("gpt2", GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2))),
        ("gpt_bigcode", GPTBigCodeForCausalLM(GPTBigCodeConfig(**sizes, initializer_range=0.2))),
    ):
        model.to(torch.bfloat16).save_pretrained(root / name)
    build_model(root / "llama")
    return {name: root / name for name in BASES}


@pytest.fixture(autouse=True)
def without_chatter() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load(folder: Path) -> Any:
    return load_model(folder, device="cpu", dtype=torch.float32)


def adapted(model: Any, kind: str, *, top: Any = "all") -> AdapterConfig:
    """An adapter that changes the model's answers."""
    targets = within_top(model, choose_targets(model, ("all-linear",)), top)
    transposed = store_transposed(model, targets)
    config = AdapterConfig(
        4, 8.0, 0.0, targets, target_names(model, targets), "tiny", fan_in_fan_out=transposed, **KINDS[kind]
    )
    add_adapter(model, config, rng_seed=1)
    stir(adapter_layers(model).values())
    return config


def stir(layers: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    for layer in layers:
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
        if "lora_magnitude_vector" in layer.parts:
            layer.lora_magnitude_vector.data.mul_(1.3)


def saved(model: Any, config: AdapterConfig, folder: Path) -> Path:
    save_adapter(folder, config, {name: p for name, p in model.named_parameters() if "lora_" in name})
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_peft_loads_our_files_and_gives_the_same_logits(
    folders: dict[str, Path], tmp_path: Path, base: str, kind: str
) -> None:
    model = load(folders[base])
    config = adapted(model, kind)
    folder = saved(model, config, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a wrong fan_in_fan_out, a key too many or too few
        theirs = PeftModel.from_pretrained(load(folders[base]), folder).eval()
    same(logits(theirs), logits(model))
    assert (logits(model) - logits(load(folders[base]))).abs().max() > 0.01
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["use_dora"], fields["use_rslora"]) == (kind == "dora", kind == "rslora")
    assert fields["fan_in_fan_out"] == (base == "gpt2")
    assert fields.keys() <= LoraConfig().to_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_files_that_peft_wrote_are_loaded_and_merged(
    folders: dict[str, Path], tmp_path: Path, base: str, kind: str
) -> None:
    wanted = LoraConfig(r=3, lora_alpha=9, target_modules="all-linear", fan_in_fan_out=base == "gpt2", **KINDS[kind])
    theirs = get_peft_model(load(folders[base]), wanted)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
        if "lora_magnitude" in name:
            parameter.data.mul_(1.2)
    theirs.save_pretrained(tmp_path)
    model = load(folders[base])
    config = load_adapter(model, tmp_path)
    assert config.rank == 3 and config.scale == (9 / 3**0.5 if kind == "rslora" else 3.0)
    same(logits(model), logits(theirs.eval()))
    same(logits(merge_adapter(model)), logits(theirs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_every_gradient_of_a_loss_is_that_of_peft(
    folders: dict[str, Path], tmp_path: Path, base: str, kind: str
) -> None:
    model = load(folders[base])
    config = adapted(model, kind)
    theirs: Any = PeftModel.from_pretrained(load(folders[base]), saved(model, config, tmp_path), is_trainable=True)
    for each in (model, theirs):
        each(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    expected = {
        name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight"): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(found) == len(config.targets) * (3 if kind == "dora" else 2)
    for name, grad in found.items():
        torch.testing.assert_close(
            grad, expected[name], atol=1e-4 * float(expected[name].abs().max()), rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_file_keys_are_those_that_peft_writes(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    model = load(folders["llama"])
    ours = saved(model, adapted(model, kind), tmp_path / "ours")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **KINDS[kind])
    get_peft_model(load(folders["llama"]), config).save_pretrained(tmp_path / "theirs")
    files = [load_file(folder / "adapter_model.safetensors") for folder in (ours, tmp_path / "theirs")]
    shapes = [{name: tuple(tensor.shape) for name, tensor in file.items()} for file in files]
    assert shapes[0] == shapes[1]
    assert ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector" in shapes[0]) == (kind == "dora")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_equals_what_was_saved_bit_for_bit(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model, fresh = load(folders["gpt2"]), load(folders["gpt2"])
    config = adapted(model, kind)
    assert load_adapter(fresh, saved(model, config, tmp_path)) == config
    assert torch.equal(logits(fresh), logits(model))


def test_adapters_on_the_top_blocks_load_in_peft(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["llama"])
    config = adapted(model, "lora", top=1)
    assert len(config.targets) == 7 and all(path.startswith("model.layers.1.") for path in config.targets)
    theirs = PeftModel.from_pretrained(load(folders["llama"]), saved(model, config, tmp_path)).eval()
    same(logits(theirs), logits(model))
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == 7


def test_every_conv1d_gets_an_adapter_and_the_head_none(folders: dict[str, Path]) -> None:
    model = load(folders["gpt2"])
    adapted(model, "lora")
    leaves = {path.rpartition(".")[2] for path in adapter_layers(model)}
    assert (leaves, len(adapter_layers(model))) == ({"c_attn", "c_proj", "c_fc"}, 8)
    shapes = {tuple(layer.lora_A.shape) for layer in adapter_layers(model).values()}
    assert shapes == {(4, 64), (4, 256)}
