"""Models and checkpoints come from safetensors alone; everything else is an error in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.model.adapters import AdapterConfig, adapter_layers, add_adapter, choose_targets, save_adapter
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.types import Artifact

IDS = torch.arange(3, 20)[None]


@pytest.fixture
def copy(base_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base_dir, tmp_path / "model")


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(path, device="cpu", dtype=dtype)


def checkpoint(path: Path, method: str) -> Artifact:
    return Artifact(path, SimpleNamespace(facts={"method": method}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_comes_in_the_dtype_asked_for_in_eval_mode(base_dir: Path, dtype: torch.dtype) -> None:
    model = load(base_dir, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype} and not model.training
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied, as config.json says


def test_loading_prints_nothing(base_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(base_dir)
    assert capfd.readouterr() == ("", "")


def _only_a_pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _own_code(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (path / "evil.py").write_text("raise SystemExit('ran')")


def _cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _lacks_a_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})


def _other_shape(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))


def _unknown_architecture(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "nothing-known"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_only_a_pickle, "pickle"),
        (_own_code, "code of its own"),
        (_cut, "bytes, its header says"),
        (_lacks_a_tensor, r"lack 1 tensors that the architecture needs, first model\.layers\.1\.mlp\.up_proj"),
        (_other_shape, "transformers cannot load|another shape"),
        (_unknown_architecture, "transformers cannot load"),
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: (path / "model.safetensors").unlink(), "no weights"),
    ],
    ids=["pickle", "code", "cut", "missing tensor", "shape", "architecture", "no config", "no weights"],
)
def test_a_folder_that_cannot_be_trusted_is_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load(copy)
    assert str(copy) in str(caught.value.where)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "nothing")


def test_a_lora_checkpoint_is_the_base_with_its_adapter_active(base_dir: Path, tmp_path: Path) -> None:
    model = load(base_dir)
    targets = choose_targets(model, ("all-linear",))
    config = AdapterConfig(2, 4.0, 0.1, targets, ("all",), "x")
    add_adapter(model, config, rng_seed=1)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.fill_(0.02)
    model.eval()
    config = AdapterConfig(2, 4.0, 0.1, targets, targets, "x")
    weights = {name: p for name, p in model.named_parameters() if "lora_" in name}
    save_adapter(tmp_path / "adapter", config, weights)
    found = load_checkpoint(checkpoint(tmp_path, "lora"), base_dir, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        ours, expected, plain = (m(input_ids=IDS).logits for m in (found, model, load(base_dir)))
    assert torch.equal(ours, expected) and not torch.equal(ours, plain)
    assert not found.training


def test_a_full_checkpoint_needs_no_base(copy: Path, tmp_path: Path) -> None:
    found = load_checkpoint(checkpoint(tmp_path, "full"), tmp_path / "gone", device="cpu", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(found(input_ids=IDS).logits, load(copy)(input_ids=IDS).logits)


def test_a_checkpoint_of_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="method lora, dora, qlora, full, found 'ia3'"):
        load_checkpoint(checkpoint(tmp_path, "ia3"), tmp_path, device="cpu", dtype=torch.float32)
