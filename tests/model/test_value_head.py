"""The scalar head: its file, its draw, its arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_models import build_model
from tunesmith.errors import ModelError
from tunesmith.model.folder import inspect_folder, weight_files
from tunesmith.model.value_head import (
    VALUE_HEAD,
    ValueHead,
    attached,
    load_value_head,
    new_value_head,
    save_value_head,
)


def test_a_head_comes_back_bit_by_bit_from_a_file_whose_bytes_depend_on_it_alone(tmp_path: Path) -> None:
    head = new_value_head(48, rng_seed=3)
    head.bias.data.fill_(1 / 3)
    for name in ("a", "b"):
        save_value_head(tmp_path / name, head)
    read = load_value_head(tmp_path / "a", 48)
    assert torch.equal(read.weight, head.weight) and torch.equal(read.bias, head.bias)
    assert (tmp_path / "a" / VALUE_HEAD).read_bytes() == (tmp_path / "b" / VALUE_HEAD).read_bytes()
    tensors = load_file(tmp_path / "a" / VALUE_HEAD)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "v_head.summary.weight": (1, 48),
        "v_head.summary.bias": (1,),
    }


def test_the_draw_depends_on_the_seed_alone_and_is_small() -> None:
    one, same, other = (new_value_head(4000, rng_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)
    assert one.weight.std().item() == pytest.approx(4001**-0.5, rel=0.05)
    assert one.bias.item() == 0.0


def test_scores_are_computed_in_fp32_whatever_the_model_computes_in() -> None:
    head = ValueHead(3)
    head.weight.data[:] = torch.tensor([1.0, 1e-4, -1.0])
    head.bias.data[:] = 0.5
    hidden = torch.tensor([[[256.0, 1.0, 256.0], [2.0, 0.0, 0.0]]], dtype=torch.bfloat16)  # (1, 2, 3)
    scores = head(hidden)
    assert scores.dtype == torch.float32 and scores.shape == (1, 2)
    assert scores[0].tolist() == pytest.approx([0.5001, 2.5], abs=3e-5)  # in bf16 the first would be 0.5


def test_a_missing_damaged_or_foreign_head_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no value_head\.safetensors"):
        load_value_head(tmp_path, 8)
    save_value_head(tmp_path, ValueHead(8))
    with pytest.raises(ModelError, match=r"expected shape \(1, 16\), found shape \(1, 8\)"):
        load_value_head(tmp_path, 16)
    data = (tmp_path / VALUE_HEAD).read_bytes()
    (tmp_path / VALUE_HEAD).write_bytes(data[:-5])
    with pytest.raises(ModelError, match="damaged"):
        load_value_head(tmp_path, 8)


def test_a_head_beside_a_model_is_no_weight_of_it(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "model")
    before = inspect_folder(folder)
    save_value_head(folder, new_value_head(64, rng_seed=3))
    assert inspect_folder(folder) == before
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_an_attached_head_is_trained_with_the_model_and_gone_afterwards() -> None:
    model, head = torch.nn.Linear(2, 2), ValueHead(2)
    with pytest.raises(KeyError), attached(model, head):
        assert {name for name, _ in model.named_parameters()} >= {"value_head.weight", "value_head.bias"}
        raise KeyError
    assert {name for name, _ in model.named_parameters()} == {"weight", "bias"}
