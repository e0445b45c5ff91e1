"""A tuned model as the base of another training: found by its folder, whole, with its own template and stop ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_models import TEMPLATE, build_model
from tunesmith.chat.renderer import Renderer
from tunesmith.errors import ModelError
from tunesmith.events import NullSink
from tunesmith.model import tuned
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    save_adapter,
    target_names,
)
from tunesmith.model.catalog import base_model_path, fetch_model
from tunesmith.model.load import load_model
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection, Runtime
from tunesmith.stages.base_model import run
from tunesmith.store import Identity, Run, Store
from tunesmith.types import Artifact, Inputs, Outcome

pytestmark = pytest.mark.usefixtures("own_cache")
IDS = torch.arange(3, 40)[None]
TUNED_TEMPLATE = "{{ '' }}" + TEMPLATE


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


class Bench:
    """A store with a base model and what was trained on it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "runs")
        self.store.create()
        self.base_dir = build_model(root / "models" / "tiny")
        (self.base_dir / "README.md").write_text("---\nlicense: mit\n---\n")
        self.base = self.commit("base_model", {}, lambda out: self.fetch(out, str(self.base_dir)))

    def fetch(self, out: Path, name: str) -> Outcome:
        return run(BaseModelSection(name=name), Inputs({}, {}), out, Context(events=NullSink(), runtime=Runtime()))

    def commit(self, stage: str, inputs: dict[str, str], make: Any) -> Artifact:
        identity = Identity(stage, 1, {"of": inputs}, inputs)
        out = self.store.partial_dir(identity)
        out.mkdir(parents=True)
        return self.store.commit(identity, make(out), 0.0)

    def train(self, method: str, *, base: Artifact | None = None, seed: int = 1) -> Artifact:
        base = base or self.base

        def make(out: Path) -> Outcome:
            if method == "full":
                model = load_model(base_model_path(base), device="cpu", dtype=torch.bfloat16)
                torch.manual_seed(seed)
                with torch.no_grad():
                    model.model.layers[0].mlp.up_proj.weight.normal_(0, 0.3)
                shutil.copytree(base_model_path(base), out / "model")
                model.save_pretrained(out / "model")
            else:
                self.adapter(out / "adapter", base_model_path(base), dora=method == "dora", seed=seed)
            (out / "chat_template.jinja").write_text(TUNED_TEMPLATE)
            facts = {"method": method, "base_weights_digest": base.facts["weights_digest"], "stop_ids": [2]}
            return Outcome("checkpoint", {}, facts)

        return self.commit("train", {"base_model": base.manifest.digest, "tokenize": f"{method}{seed}"}, make)

    def adapter(self, folder: Path, base_dir: Path, *, dora: bool, seed: int) -> None:
        model = load_model(base_dir, device="cpu", dtype=torch.float32)
        targets = choose_targets(model, ("all-linear",))
        config = AdapterConfig(4, 8.0, 0.0, targets, target_names(model, targets), "tiny", use_dora=dora)
        add_adapter(model, config, rng_seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for layer in adapter_layers(model).values():
            layer.lora_B.data.normal_(0, 0.1, generator=generator)
        save_adapter(folder, config, {name: p for name, p in model.named_parameters() if "lora_" in name})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_checkpoint_folder_is_its_merged_model(bench: Bench, method: str) -> None:
    checkpoint = bench.train(method)
    fetched = fetch_model(str(checkpoint.path), events=NullSink())
    expected = load_model(bench.base_dir, device="cpu", dtype=torch.float32)
    load_adapter(expected, checkpoint.path / "adapter")
    with torch.no_grad():
        for path, layer in adapter_layers(expected).items():
            merged = load_file(fetched.path / "model.safetensors")[f"{path}.weight"]
            assert torch.equal(merged, layer.merged_weight().bfloat16())
    found = logits(load_model(fetched.path, device="cpu", dtype=torch.float32))
    assert float((found - logits(expected)).norm() / logits(expected).norm()) < 0.02  # one rounding to bf16
    base = logits(load_model(bench.base_dir, device="cpu", dtype=torch.float32))
    assert float((found - base).norm() / base.norm()) > 0.1
    assert (fetched.source, fetched.licence) == ("folder", "mit")
    assert json.loads((fetched.path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_speaks_with_the_template_and_stop_ids_it_was_trained_with(bench: Bench, method: str) -> None:
    checkpoint = bench.train(method)
    before = {path: path.read_bytes() for path in checkpoint.path.rglob("*") if path.is_file()}
    fetched = fetch_model(str(checkpoint.path), events=NullSink())
    assert Renderer.for_model(fetched.path).template_digest == Renderer.for_model(
        bench.base_dir, TUNED_TEMPLATE
    ).template_digest != Renderer.for_model(bench.base_dir).template_digest  # fmt: skip
    assert json.loads((fetched.path / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert (fetched.path / "tokenizer.json").read_bytes() == (bench.base_dir / "tokenizer.json").read_bytes()
    assert {path: path.read_bytes() for path in before} == before  # the checkpoint itself is untouched


def test_a_full_checkpoint_is_taken_bit_for_bit(bench: Bench) -> None:
    checkpoint = bench.train("full")
    fetched = fetch_model(str(checkpoint.path), events=NullSink())
    theirs = load_file(checkpoint.path / "model" / "model.safetensors")
    ours = load_file(fetched.path / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_is_merged_once_and_again_where_the_cache_was_emptied(
    bench: Bench, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = bench.train("lora")
    first = fetch_model(str(checkpoint.path), events=NullSink())
    with monkeypatch.context() as patch:
        patch.setattr(tuned, "merge_adapter", lambda *_: pytest.fail("merged again"))
        assert fetch_model(str(checkpoint.path), events=NullSink()) == first
    shutil.rmtree(own_cache / "tuned")
    assert fetch_model(str(checkpoint.path), events=NullSink()) == first


def test_a_chain_of_trainings_ends_in_one_model(bench: Bench, own_cache: Path) -> None:
    first = bench.train("lora")
    second_base = bench.commit("base_model", {"file:a": "b"}, lambda out: bench.fetch(out, str(first.path)))
    second = bench.train("dora", base=second_base, seed=2)
    fetched = fetch_model(str(second.path), events=NullSink())
    expected = load_model(base_model_path(second_base), device="cpu", dtype=torch.float32)
    load_adapter(expected, second.path / "adapter")
    found = logits(load_model(fetched.path, device="cpu", dtype=torch.float32))
    assert float((found - logits(expected)).norm() / found.norm()) < 0.02
    shutil.rmtree(own_cache / "tuned")  # the base of the second is made anew from the first
    assert fetch_model(str(second.path), events=NullSink()).weights_digest == fetched.weights_digest


def test_a_run_stands_for_its_newest_checkpoint(bench: Bench) -> None:
    checkpoint = bench.train("lora")
    folder = bench.store.root / "desk-001"
    folder.mkdir()
    made = Run(folder)
    made.update(name="desk", artifacts={})
    with pytest.raises(ModelError, match="this run has no trained model yet"):
        fetch_model(str(folder), events=NullSink())
    made.link("train", checkpoint)
    expected = fetch_model(str(checkpoint.path), events=NullSink())
    for name in (folder, folder / "train"):
        assert fetch_model(str(name), events=NullSink()).path == expected.path


def test_another_artifact_is_refused_by_its_kind(bench: Bench) -> None:
    with pytest.raises(ModelError, match="found an artifact of kind 'base_model'"):
        fetch_model(str(bench.base.path), events=NullSink())


def test_an_adapter_that_was_carried_away_is_merged_where_its_bases_name_leads_somewhere(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away" / "train"
    shutil.copytree(bench.train("lora").path, away)
    with pytest.raises(ModelError, match="is not beside it, and its name 'tiny' leads nowhere"):
        fetch_model(str(away), events=NullSink())
    monkeypatch.chdir(tmp_path / "models")
    assert fetch_model(str(away), events=NullSink()).num_parameters > 0


def test_an_adapter_is_not_merged_into_other_weights(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away" / "train"
    shutil.copytree(bench.train("lora").path, away)
    build_model(tmp_path / "others" / "tiny", hidden_size=32)
    monkeypatch.chdir(tmp_path / "others")
    with pytest.raises(ModelError, match="tiny is not the model this adapter was trained on"):
        fetch_model(str(away), events=NullSink())
