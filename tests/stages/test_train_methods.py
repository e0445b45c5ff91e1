"""Stage train by method: DoRA, frozen layers and embeddings, and QLoRA where there is no graphics card."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from test_train import as_checkpoint, call, files, inputs  # noqa: F401  # fixtures of the stage
from transformers import GPT2Config, GPT2LMHeadModel

from small_models import build_model, build_tokenizer
from tunesmith.errors import RecipeError
from tunesmith.events import Note
from tunesmith.model.adapters import merge_adapter
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.protocols import Context
from tunesmith.recipe import Runtime, Train
from tunesmith.stages import train as stage

pytestmark = pytest.mark.slow

IDS = torch.arange(3, 30)[None]
EMBEDDINGS = "model.embed_tokens.weight"


def changed(base: Path, out: Path) -> set[str]:
    """Tensors of the saved model that are not those of the base's file, bit for bit."""
    before, after = load_file(base / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_dora_trains_matrices_and_magnitudes_and_merges(call: Any, base_dir: Path) -> None:  # noqa: F811
    out, outcome = call(method="dora", num_epochs=6)
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert (config["use_dora"], outcome.facts["method"]) == (True, "dora")
    assert outcome.facts["num_trainable"] == 8192 + 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    assert outcome.facts["final_loss"] < outcome.facts["first_loss"]
    model = load_checkpoint(as_checkpoint(out, outcome), base_dir, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        tuned = model(input_ids=IDS).logits
        torch.testing.assert_close(merge_adapter(model)(input_ids=IDS).logits, tuned, atol=1e-4, rtol=1e-4)
        base = load_model(base_dir, device="cpu", dtype=torch.float32)(input_ids=IDS).logits
    assert float((tuned - base).abs().max()) > 0.05
    tensors = load_file(out / "adapter/adapter_model.safetensors")
    lengths = torch.linalg.vector_norm(load_model(base_dir, device="cpu", dtype=torch.float32).model.layers[0].mlp.up_proj.weight, dim=1)  # fmt: skip
    trained = tensors["base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"]
    assert 0 < float((trained - lengths).detach().abs().max()) < 0.1


def test_adapters_on_the_top_block_alone(call: Any, sink: Any, base_dir: Path) -> None:  # noqa: F811
    out, outcome = call(trainable_layers=1)
    tensors = load_file(out / "adapter/adapter_model.safetensors")
    assert {name.split(".")[4] for name in tensors} == {"1"}
    assert outcome.facts["num_trainable"] == 4096
    notes = [event.message for event in sink.events if isinstance(event, Note)]
    own = sum(p.numel() for p in load_model(base_dir, device="cpu", dtype=torch.float32).parameters())
    assert f"4,096 parameters are trained, beside a model of {own:,} ({4096 / own:.2%})" in notes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_full_training_of_the_top_block_leaves_every_other_weight_as_it_was(
    call: Any,  # noqa: F811
    base_dir: Path,
    precision: str,
) -> None:
    out, outcome = call(method="full", trainable_layers=1, runtime={"precision": precision})
    moved = changed(base_dir, out)
    assert moved and all(name.startswith("model.layers.1.") for name in moved)
    assert len(moved) == 9 and outcome.facts["num_trainable"] < 40_000


def test_frozen_fp32_weights_survive_training_in_bf16(
    call: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = build_model(tmp_path / "wide")
    model = load_model(base, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-4)  # now not a number of bf16
    model.config.dtype = torch.float32
    model.save_pretrained(base)
    monkeypatch.setattr(stage, "base_model_path", lambda _: base)
    out, _ = call(method="full", trainable_layers=1, runtime={"precision": "bf16"})
    moved = changed(base, out)
    assert len(moved) == 9 and all(name.startswith("model.layers.1.") for name in moved)


@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({}, True),
        ({"train_embeddings": False}, False),
        ({"train_embeddings": True, "trainable_layers": 1}, True),
        ({"trainable_layers": 2}, False),
    ],
)
def test_embeddings_change_where_the_recipe_says_so(
    call: Any,  # noqa: F811
    base_dir: Path,
    options: dict[str, Any],
    moves: bool,
) -> None:
    out, _ = call(method="full", **options)
    moved = changed(base_dir, out)
    assert (EMBEDDINGS in moved) == moves
    assert ("model.layers.0.mlp.up_proj.weight" in moved) == (options.get("trainable_layers", 2) == 2)
    assert ("model.norm.weight" in moved) == ("trainable_layers" not in options)


def test_more_layers_than_there_are_is_an_error(call: Any) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="the model has 2 blocks, so the top 3 cannot be trained") as caught:
        call(trainable_layers=3)
    assert caught.value.where == "recipe.train.trainable_layers"


def test_an_adapter_cannot_train_embeddings() -> None:
    with pytest.raises(ValidationError, match="`train_embeddings: true` needs `method: full`"):
        Train(method="dora", train_embeddings=True)


def test_qlora_without_a_graphics_card_is_refused_before_any_work(
    call: Any,  # noqa: F811
    sink: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="trains on a CUDA device, and this training would run on the cpu") as caught:
        call("out", method="qlora")
    assert caught.value.where == "recipe.train.method" and "method: lora" in str(caught.value.hint)
    assert sink.events == []


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_and_merges_with_the_cpu_kernels_of_bitsandbytes(
    call: Any,  # noqa: F811
    base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "check_quantisation", lambda device: None)
    out, outcome = call(method="qlora", num_epochs=6, runtime={"precision": "bf16"})
    assert "adapter/adapter_model.safetensors" in files(out)
    assert outcome.facts["final_loss"] < outcome.facts["first_loss"]
    model = load_checkpoint(as_checkpoint(out, outcome), base_dir, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        tuned = model(input_ids=IDS).logits
        torch.testing.assert_close(merge_adapter(model)(input_ids=IDS).logits, tuned, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_maps_that_store_their_weight_transposed_are_trained_and_merged(
    call: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    base = tmp_path / "gpt2"
    build_tokenizer(base)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, initializer_range=0.2)).save_pretrained(base)
    monkeypatch.setattr(stage, "base_model_path", lambda _: base)
    out, outcome = call(method=method, num_epochs=6)
    assert outcome.facts["final_loss"] < outcome.facts["first_loss"]
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert (config["fan_in_fan_out"], config["target_modules"]) == (True, ["c_attn", "c_fc", "c_proj"])
    model = load_checkpoint(as_checkpoint(out, outcome), base, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        tuned = model(input_ids=IDS).logits
        torch.testing.assert_close(merge_adapter(model)(input_ids=IDS).logits, tuned, atol=1e-4, rtol=1e-4)


@pytest.mark.real
def test_dora_on_the_embedded_model_learns_a_line_and_peft_agrees(
    smollm2_dir: Path,
    inputs: Any,  # noqa: F811
    tmp_path: Path,
    sink: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "base_model_path", lambda _: smollm2_dir)
    section = Train(
        method="dora", max_steps=4, num_epochs=4, learning_rate=1e-3, lr_schedule="constant", warmup_ratio=0
    )
    out = tmp_path / "out"
    out.mkdir()
    outcome = stage.run(section, inputs, out, Context(events=sink, runtime=Runtime()))
    assert outcome.facts["final_loss"] < outcome.facts["first_loss"] - 0.3
    rows = 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert outcome.facts["num_trainable"] == 4_884_480 + rows
