"""4-bit bases: what is refused where, what is asked of bitsandbytes, and, where it is installed, that it does it.

bitsandbytes has kernels for the CPU too, slow ones: enough to check which maps are packed, that gradients reach the
adapter, and that merging uses the values of the packed base. Without the package those tests are skipped.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from made_artifact import artifact
from tunesmith.errors import MissingExtra, ModelError, RecipeError
from tunesmith.model import low_rank, quantised
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    linear_paths,
    load_adapter,
    merge_adapter,
    save_adapter,
    target_names,
)
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.model.low_rank import LoraLinear

IDS = torch.arange(3, 40)[None]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)


def test_a_device_without_4_bit_kernels_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="trains on a CUDA device, and this training would run on the cpu") as caught:
        quantised.check_quantisation(torch.device("cpu"))
    assert caught.value.where == "recipe.train.method"


def test_a_missing_package_is_named_with_the_command_that_installs_it(without_package: None) -> None:
    with pytest.raises(MissingExtra, match="needs the package 'bitsandbytes'") as caught:
        quantised.check_quantisation(torch.device("cuda"))
    assert "tunesmith[qlora]" in str(caught.value.hint)


def test_a_quantised_checkpoint_cannot_be_loaded_without_the_package(without_package: None, base_dir: Path) -> None:
    checkpoint = artifact(base_dir, "checkpoint", {"method": "qlora"})
    with pytest.raises(MissingExtra, match="the base model of a `qlora` checkpoint"):
        load_checkpoint(checkpoint, base_dir, device="cpu", dtype=torch.float32)


def test_the_request_is_nf4_with_double_quantisation_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "require_package", lambda purpose: None)
    options = quantised.loading_options("cuda:1")
    config = options["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert (config.bnb_4bit_compute_dtype, options["device_map"]) == (torch.bfloat16, {"": "cuda:1"})


def test_a_packed_base_is_unpacked_for_each_pass_and_cannot_be_merged_into(monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.nn.Linear(6, 5)
    base.weight = torch.nn.Parameter(torch.zeros(15, 1, dtype=torch.uint8), requires_grad=False)
    hidden = torch.randn(5, 6)
    monkeypatch.setattr(low_rank, "dequantise", lambda layer: hidden)
    model = torch.nn.Sequential(LoraLinear(base, rank=2, scale=0.5, dropout=0.0))
    layer: Any = model[0]
    layer.lora_A.data.normal_()
    layer.lora_B.data.normal_()
    x, direction = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 4, 5)
    expected = torch.nn.functional.linear(x, hidden + 0.5 * layer.lora_B @ layer.lora_A, base.bias)
    torch.testing.assert_close(layer(x), expected)
    wanted = (x, layer.lora_A, layer.lora_B)
    for ours, plain in zip(
        torch.autograd.grad(layer(x), wanted, direction), torch.autograd.grad(expected, wanted, direction), strict=True
    ):
        torch.testing.assert_close(ours, plain)
    with pytest.raises(ModelError, match="cannot be merged into 4-bit weights"):
        merge_adapter(model)  # pyright: ignore[reportArgumentType]


def adapted(model: Any) -> AdapterConfig:
    targets = choose_targets(model, ("all-linear",))
    config = AdapterConfig(4, 8.0, 0.0, targets, target_names(model, targets), "tiny")
    add_adapter(model, config, rng_seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
    return config


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


@needs_package
def test_every_linear_map_but_the_head_is_packed_and_gradients_reach_the_adapter(base_dir: Path) -> None:
    model = load_model(base_dir, device="cpu", dtype=torch.bfloat16, quantised=True)
    packed = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert packed == linear_paths(load_model(base_dir, device="cpu", dtype=torch.bfloat16))
    config = adapted(model)
    layers = adapter_layers(model)
    assert len(layers) == len(config.targets) == 14 and all(layer.quantised for layer in layers.values())
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for layer in layers.values():
        assert layer.lora_A.dtype == layer.lora_A.grad.dtype == torch.float32
        assert bool(layer.lora_A.grad.any()) and bool(layer.lora_B.grad.any())


@needs_package
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_merging_starts_from_the_values_of_the_packed_base(base_dir: Path, tmp_path: Path, kind: str) -> None:
    if kind == "gpt2":
        torch.manual_seed(0)
        small = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
        base_dir = tmp_path / "gpt2"
        GPT2LMHeadModel(small).to(torch.bfloat16).save_pretrained(base_dir)
    model = load_model(base_dir, device="cpu", dtype=torch.bfloat16, quantised=True)
    config = adapted(model)
    weights = {name: p for name, p in model.named_parameters() if "lora_" in name}
    save_adapter(tmp_path / "adapter", config, weights)
    loaded = load_checkpoint(
        artifact(tmp_path, "checkpoint", {"method": "qlora"}), base_dir, device="cpu", dtype=torch.float32
    )
    plain = load_model(base_dir, device="cpu", dtype=torch.float32)
    load_adapter(plain, tmp_path / "adapter")
    for path, layer in adapter_layers(model).items():
        found: Any = loaded.get_submodule(path)
        assert torch.equal(found.weight, quantised.dequantise(layer.base).float()), path
    trained = logits(model)
    with_packed_values, with_file_values = (
        float((logits(merge_adapter(each)) - trained).norm() / trained.norm()) for each in (loaded, plain)
    )
    assert with_packed_values < 0.05 and 3 * with_packed_values < with_file_values  # bf16 products against fp32
