"""A whole model's folder, as transformers loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import TEMPLATE, build_model
from tunesmith.errors import StoreError
from tunesmith.model.whole import save_whole, set_template


def save(base_dir: Path, out_dir: Path, template: str = TEMPLATE) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1.0
    assert save_whole(model, base_dir, out_dir) == torch.bfloat16
    set_template(out_dir, template, (2, 0))


def test_the_folder_loads_with_the_changed_weights_in_the_base_models_type(tmp_path):
    base_dir = build_model(tmp_path / "base")
    save(base_dir, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.dtype == torch.bfloat16
    expected = (base.model.layers[0].mlp.up_proj.weight.float() + 1.0).bfloat16()
    assert torch.equal(merged.model.layers[0].mlp.up_proj.weight, expected)
    assert torch.equal(merged.model.layers[1].mlp.up_proj.weight, base.model.layers[1].mlp.up_proj.weight)
    assert merged.generation_config.eos_token_id == [2, 0]


def test_the_template_it_was_trained_with_replaces_the_base_models(tmp_path):
    base_dir = build_model(tmp_path / "base")
    config = json.loads((base_dir / "tokenizer_config.json").read_bytes())
    (base_dir / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "old"}))
    save(base_dir, tmp_path / "out", TEMPLATE + "{# new #}")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE + "{# new #}"


def test_the_tokenizer_is_the_base_models_byte_for_byte(tmp_path):
    base_dir = build_model(tmp_path / "base")
    save(base_dir, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base_dir / "tokenizer.json").read_bytes()


def test_no_path_of_this_machine_is_in_any_file_and_bytes_repeat(tmp_path):
    base_dir = build_model(tmp_path / "base")
    save(base_dir, tmp_path / "a")
    save(base_dir, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_full_disk_is_said_with_what_is_free(tmp_path, monkeypatch):
    base_dir = build_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base_dir)
    (tmp_path / "out").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(StoreError, match=r"the model cannot be written \([\d,]+ bytes free\): .*No space left"):
        save_whole(model, base_dir, tmp_path / "out")
