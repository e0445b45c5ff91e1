"""`tunesmith merge` through the command line: what it writes, what it says, what it refuses before it works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from made_artifact import made_manifest
from tunesmith.cli.main import app
from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    save_adapter,
    target_names,
)
from tunesmith.model.load import load_model


@pytest.fixture
def adapters(base_dir: Path, tmp_path: Path) -> list[Path]:
    return [make(base_dir, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]


def load(folder: Path) -> Any:
    return load_model(folder, device="cpu", dtype=torch.float32)


def make(base: Path, folder: Path, seed: int, **kind: Any) -> Path:
    model = load(base)
    targets = choose_targets(model, ("all-linear",))
    config = AdapterConfig(3, 6.0, 0.0, targets, target_names(model, targets), "tiny", **kind)
    add_adapter(model, config, rng_seed=seed)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1)
    save_adapter(folder, config, {name: p for name, p in model.named_parameters() if "lora_" in name})
    return folder


def merge(*words: Any) -> str:
    """Run the command; returns what it printed, raises what it raised."""
    result = CliRunner().invoke(app, ["merge", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def tuned_weight(base: Path, adapter: Path, path: str) -> torch.Tensor:
    model = load(base)
    load_adapter(model, adapter)
    return adapter_layers(model)[path].tuned_weight().detach()


def test_two_adapters_become_one_with_equal_shares(base_dir: Path, adapters: list[Path], tmp_path: Path) -> None:
    said = merge(base_dir, *adapters, "--out", tmp_path / "both")
    assert "one adapter of rank 6 on 14 maps, exact" in said and "0.5 x" in said
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (6, 6, "tiny")
    path = "model.layers.1.mlp.up_proj"
    expected = sum(tuned_weight(base_dir, adapter, path) for adapter in adapters) / 2
    torch.testing.assert_close(tuned_weight(base_dir, tmp_path / "both", path), expected, atol=1e-6, rtol=1e-5)


def test_a_cut_adapter_says_what_was_lost(base_dir: Path, adapters: list[Path], tmp_path: Path) -> None:
    said = merge(base_dir, *adapters, "--weights", "1,0.5", "--rank", 4, "--out", tmp_path / "small")
    lost = re.search(r"rank 4 on 14 maps, ([\d.]+)% of what the adapters add was lost", said)
    assert lost and 1 < float(lost[1]) < 50


def test_a_whole_model_is_written_in_the_bases_dtype_with_its_tokenizer(
    base_dir: Path, adapters: list[Path], tmp_path: Path
) -> None:
    said = merge(base_dir, *adapters, "--weights", "1,-1", "--into-model", "--out", tmp_path / "model")
    assert "a whole model in bfloat16, 14 maps changed" in said
    path = "model.layers.1.mlp.up_proj"
    plain = load(base_dir).get_submodule(path).weight
    one, two = (tuned_weight(base_dir, adapter, path) for adapter in adapters)
    found = load(tmp_path / "model").get_submodule(path).weight
    torch.testing.assert_close(found, plain + (one - plain) - (two - plain), atol=1e-2, rtol=1e-2)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "model" / name).read_bytes() == (base_dir / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_ties_and_dora_end_as_an_adapter_where_a_rank_is_given(
    base_dir: Path, adapters: list[Path], tmp_path: Path
) -> None:
    dora = make(base_dir, tmp_path / "dora", 5, use_dora=True)
    said = merge(base_dir, *adapters, "--method", "ties", "--density", 0.5, "--rank", 8, "--out", tmp_path / "ties")
    assert "one adapter of rank 8" in said
    said = merge(base_dir, adapters[0], dora, "--rank", 64, "--out", tmp_path / "wide")
    assert "one adapter of rank 64" in said
    path = "model.layers.0.mlp.down_proj"
    expected = (tuned_weight(base_dir, adapters[0], path) + tuned_weight(base_dir, dora, path)) / 2
    torch.testing.assert_close(tuned_weight(base_dir, tmp_path / "wide", path), expected, atol=1e-5, rtol=1e-4)


def test_a_run_stands_for_its_adapter(base_dir: Path, tmp_path: Path) -> None:
    make(base_dir, tmp_path / "desk-001" / "train" / "adapter", 1)
    assert "rank 3" in merge(base_dir, tmp_path / "desk-001", "--out", tmp_path / "a")
    assert "rank 3" in merge(base_dir, tmp_path / "desk-001" / "train", "--out", tmp_path / "b")


def test_a_checkpoint_of_another_base_is_refused_by_its_weights(base_dir: Path, tmp_path: Path) -> None:
    train = tmp_path / "train"
    make(base_dir, train / "adapter", 1)
    manifest = made_manifest("checkpoint", {"method": "lora", "base_weights_digest": "another"}, stage="train")
    (train / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.raises(ModelError, match="was trained on another model than"):
        merge(base_dir, train, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1,x"], "expected numbers with commas between, found '1,x'"),
        (["--weights", "1"], "2 adapters need as many weights, found 1"),
        (["--method", "ties"], "no low rank, so it is no adapter"),
        (["--density", "0.5"], "only ties trims"),
        (["--rank", "2", "--into-model"], "a whole model has no rank"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    base_dir: Path, adapters: list[Path], tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge(base_dir, *adapters, *options, "--out", tmp_path / "out")
    assert not any(path.name.endswith((".tmp", "out")) for path in tmp_path.iterdir())


def test_nothing_is_overwritten_and_a_folder_without_an_adapter_is_named(
    base_dir: Path, adapters: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="is there already"):
        merge(base_dir, *adapters, "--out", adapters[0])
    with pytest.raises(ModelError, match="there is no adapter here"):
        merge(base_dir, adapters[0], base_dir, "--out", tmp_path / "out")
