"""Merging adapters: the sum of what they add, exactly; what a lower rank loses; what TIES keeps; whole models."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from small_models import build_model
from tunesmith.errors import ModelError, RecipeError
from tunesmith.model import merging
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    load_adapter,
    save_adapter,
    store_transposed,
    target_names,
)
from tunesmith.model.load import load_model
from tunesmith.model.merging import SavedAdapter, ties

IDS = torch.arange(3, 40)[None]
WEIGHTS = (0.7, -0.4)


@pytest.fixture(scope="module")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
    folder = tmp_path_factory.mktemp("merging") / "gpt2"
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return load_model(folder, device="cpu", dtype=torch.float32)


def make(
    base: Path, folder: Path, seed: int, *, rank: int, wanted: Sequence[str] = ("all-linear",), **kind: Any
) -> Any:
    """An adapter that matters, and the model it is active on."""
    model = load(base)
    targets = choose_targets(model, wanted)
    names, transposed = target_names(model, targets), store_transposed(model, targets)
    config = AdapterConfig(rank, 8.0, 0.0, targets, names, "tiny", fan_in_fan_out=transposed, **kind)
    add_adapter(model, config, rng_seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in adapter_layers(model).values():
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
        if "lora_magnitude_vector" in layer.parts:
            layer.lora_magnitude_vector.data.mul_(1.2)
    save_adapter(folder, config, {name: p for name, p in model.named_parameters() if "lora_" in name})
    return merging.read_adapter(folder)


def deltas(model: Any, path: str) -> torch.Tensor:
    """(out, in) of an adapted model's map: the product written down."""
    layer = adapter_layers(model)[path]
    return (layer.tuned_weight() - layer.weight).detach()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kinds", [({}, {}), ({"use_rslora": True}, {})])
def test_the_concatenation_adds_the_weighted_sum_of_what_each_adds(
    base_dir: Path, tmp_path: Path, kinds: tuple[Any, Any]
) -> None:
    adapters = [
        make(base_dir, tmp_path / str(i), i, rank=rank, **kind)
        for i, (rank, kind) in enumerate(zip((4, 3), kinds, strict=True))
    ]
    combined = merging.concatenate(adapters, WEIGHTS)
    merging.save_combined(tmp_path / "both", combined, "tiny")
    model, parts = load(base_dir), [load(base_dir), load(base_dir)]
    for each, folder in zip((model, *parts), ("both", "0", "1"), strict=True):
        load_adapter(each, tmp_path / folder)
    assert (combined.config.rank, combined.config.scale, combined.error) == (7, 1.0, 0.0)
    for path in adapter_layers(model):
        expected = sum(w * deltas(part, path) for w, part in zip(WEIGHTS, parts, strict=True))
        torch.testing.assert_close(deltas(model, path), expected, atol=1e-6, rtol=1e-5)
    fields = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_the_mean_of_the_matrices_is_another_map(base_dir: Path, tmp_path: Path) -> None:
    adapters = [make(base_dir, tmp_path / str(i), i, rank=4) for i in range(2)]
    path = adapters[0].config.targets[0]
    factors = [adapter.factors(path) for adapter in adapters]
    mean = (factors[0][1] + factors[1][1]) / 2 @ (factors[0][0] + factors[1][0]) / 2
    wanted = sum(adapter.delta(path, None) for adapter in adapters) / 2
    assert float((mean - wanted).norm() / wanted.norm()) > 0.5


def test_peft_gives_the_merged_adapters_logits(gpt2_dir: Path, tmp_path: Path) -> None:
    adapters = [make(gpt2_dir, tmp_path / str(i), i, rank=2) for i in range(2)]
    merging.save_combined(tmp_path / "both", merging.concatenate(adapters, (0.5, 0.5)), "tiny")
    ours = load(gpt2_dir)
    load_adapter(ours, tmp_path / "both")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(load(gpt2_dir), tmp_path / "both").eval()
    expected = logits(theirs)
    torch.testing.assert_close(logits(ours), expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-5)


def test_adapters_on_different_maps_are_joined_with_zeros(base_dir: Path, tmp_path: Path) -> None:
    one = make(base_dir, tmp_path / "0", 0, rank=2, wanted=("q_proj", "v_proj"))
    two = make(base_dir, tmp_path / "1", 1, rank=3, wanted=("v_proj", "layers.1.mlp.up_proj"))
    combined = merging.concatenate([one, two], WEIGHTS)
    merging.save_combined(tmp_path / "both", combined, "tiny")
    model = load(base_dir)
    config = load_adapter(model, tmp_path / "both")
    assert len(config.targets) == 5 and config.rank == 5
    path = "model.layers.1.mlp.up_proj"
    torch.testing.assert_close(deltas(model, path), -0.4 * two.delta(path, None), atol=1e-6, rtol=1e-5)
    path = "model.layers.0.self_attn.v_proj"
    both = 0.7 * one.delta(path, None) - 0.4 * two.delta(path, None)
    torch.testing.assert_close(deltas(model, path), both, atol=1e-6, rtol=1e-5)


def test_a_lower_rank_is_the_best_there_is_and_says_what_it_lost(base_dir: Path, tmp_path: Path) -> None:
    adapters = [make(base_dir, tmp_path / str(i), i, rank=4) for i in range(2)]
    whole = merging.concatenate(adapters, WEIGHTS)
    cut = merging.compress(whole, 5)
    lost = total = 0.0
    for path in whole.config.targets:
        wanted = whole.tensors[f"{path}.lora_B"] @ whole.tensors[f"{path}.lora_A"]
        found = cut.tensors[f"{path}.lora_B"] @ cut.tensors[f"{path}.lora_A"]
        u, s, vh = torch.linalg.svd(wanted)
        torch.testing.assert_close(found, (u[:, :5] * s[:5]) @ vh[:5], atol=1e-4, rtol=1e-4)
        lost, total = lost + float((wanted - found).norm() ** 2), total + float(wanted.norm() ** 2)
    assert cut.error == pytest.approx((lost / total) ** 0.5, rel=1e-3) and 0.1 < cut.error < 0.6
    assert cut.tensors["model.layers.0.self_attn.q_proj.lora_A"].shape == (5, 64)
    dense = merging.combined_deltas(adapters, WEIGHTS, method="cat", density=1.0, model=None)
    assert merging.compress_deltas(adapters, dense, 5).error == pytest.approx(cut.error, rel=1e-3)


def test_two_equal_adapters_fit_into_the_rank_of_one(base_dir: Path, tmp_path: Path) -> None:
    adapter = make(base_dir, tmp_path / "0", 0, rank=4)
    cut = merging.compress(merging.concatenate([adapter, adapter], (0.5, 0.5)), 4)
    path = adapter.config.targets[3]
    assert cut.error < 1e-6
    found = cut.tensors[f"{path}.lora_B"] @ cut.tensors[f"{path}.lora_A"]
    torch.testing.assert_close(found, adapter.delta(path, None), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("which", ["base_dir", "gpt2_dir"])
def test_adapters_folded_into_the_model_change_its_weights_by_their_sum(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(which)
    adapters = [make(base, tmp_path / "0", 0, rank=4), make(base, tmp_path / "1", 1, rank=2, use_dora=True)]
    model, parts, plain = load(base), [load(base), load(base)], load(base)
    for part, folder in zip(parts, ("0", "1"), strict=True):
        load_adapter(part, tmp_path / folder)
    added = merging.combined_deltas(adapters, WEIGHTS, method="cat", density=1.0, model=model)
    assert merging.add_to_model(model, added) == len(adapters[0].config.targets)
    for path in adapters[0].config.targets:
        expected = merging.base_weight(plain, path) + sum(
            w * deltas(part, path) for w, part in zip(WEIGHTS, parts, strict=True)
        )
        torch.testing.assert_close(merging.base_weight(model, path), expected, atol=2e-6, rtol=1e-5)


def test_one_dora_adapter_at_full_weight_is_the_model_it_was(base_dir: Path, tmp_path: Path) -> None:
    adapter = make(base_dir, tmp_path / "0", 0, rank=4, use_dora=True)
    active, model = load(base_dir), load(base_dir)
    load_adapter(active, tmp_path / "0")
    merging.add_to_model(model, merging.combined_deltas([adapter], (1.0,), method="cat", density=1.0, model=model))
    expected = logits(active)
    torch.testing.assert_close(logits(model), expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


def test_dora_adapters_have_no_exact_sum_of_low_rank(base_dir: Path, tmp_path: Path) -> None:
    adapters = [make(base_dir, tmp_path / str(i), i, rank=2, use_dora=bool(i)) for i in range(2)]
    with pytest.raises(RecipeError, match="full rank, so a sum with it is no adapter"):
        merging.concatenate(adapters, WEIGHTS)
    with pytest.raises(ModelError, match="depends on the base model's weights"):
        list(merging.combined_deltas(adapters, WEIGHTS, method="cat", density=1.0, model=None))


def test_ties_trims_elects_a_sign_and_averages_what_agrees() -> None:
    one = torch.tensor([[9.0, 1.0, -4.0, 5.0, 0.5]])
    two = torch.tensor([[-2.0, 8.0, 6.0, 7.0, 0.1]])
    # each keeps three of five: 9, -4, 5 and 8, 6, 7; signs: +, +, +, +; the mean of those that agree
    expected = torch.tensor([[9.0, 8.0, 6.0, 6.0, 0.0]])
    assert torch.equal(ties([one, two], (0.5, 0.5), 0.6), expected)
    # the first counts three times: the third sign turns, the fourth mean moves
    weighted = torch.tensor([[9.0, 8.0, -4.0, 5.5, 0.0]])
    assert torch.equal(ties([one, two], (0.75, 0.25), 0.6), weighted)


def test_ties_of_one_whole_delta_is_that_delta() -> None:
    delta = torch.randn(5, 6)
    assert torch.equal(ties([delta], (1.0,), 1.0), delta)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "2 adapters need as many weights, found 1"),
        ((0.0, 0.0), "not all of them 0"),
        ((float("nan"), 1.0), "finite"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    base_dir: Path, tmp_path: Path, weights: tuple[float, ...], message: str
) -> None:
    adapters = [make(base_dir, tmp_path / str(i), i, rank=2) for i in range(2)]
    with pytest.raises(RecipeError, match=message):
        merging.concatenate(adapters, weights)


def test_adapters_of_different_models_are_refused(base_dir: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "narrow", hidden_size=32)
    adapters: list[SavedAdapter] = [
        make(base_dir, tmp_path / "0", 0, rank=2),
        make(other, tmp_path / "1", 1, rank=2),
    ]
    with pytest.raises(
        ModelError, match="maps 128 to 32 numbers here, and 128 to 64 in an adapter before it"
    ) as caught:
        merging.check_together(adapters, WEIGHTS)
    assert caught.value.hint == "these adapters belong to different base models"


def test_an_adapter_of_another_base_is_refused_by_the_file_headers(base_dir: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "narrow", hidden_size=32)
    with pytest.raises(ModelError, match=r"maps \d+ to \d+ numbers, the base model's is"):
        merging.check_base(other, [make(base_dir, tmp_path / "0", 0, rank=2)])


def test_a_file_that_lacks_a_part_is_refused(base_dir: Path, tmp_path: Path) -> None:
    adapter = make(base_dir, tmp_path / "0", 0, rank=2)
    tensors = dict(adapter.tensors)
    gone = f"{adapter.config.targets[0]}.lora_B"
    tensors.pop(gone)
    save_adapter(tmp_path / "0", adapter.config, tensors)
    with pytest.raises(ModelError, match=f"{gone} is missing"):
        merging.read_adapter(tmp_path / "0")
