"""`tunesmith weights`: every command once, what it says, and that nothing of a person's is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from small_models import build_model
from tunesmith.cli.main import app
from tunesmith.errors import DataError, ModelError, RecipeError, StoreError
from tunesmith.model import tensor_files


def weights(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)], standalone_mode=False, env={"COLUMNS": "200"})
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def tuned_dir(model_dir: Path) -> Path:
    """The model with a little added to every weight."""
    folder = model_dir.with_name("tuned")
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {
        name: tensor + tensor.sign() * 2e-3 for name, tensor in load_file(model_dir / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_llama_goes_out_in_two_files_and_comes_back(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    shown = weights("to-llama", tmp_path / "hf", tmp_path / "7B", "--shards", 2)
    assert "30,816 parameters in 2 files" in shown
    import base64

    ranks = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (tmp_path / "tokenizer.model").write_text(ranks)
    shown = weights("from-llama", tmp_path / "7B", tmp_path / "back", "--context", 64)
    assert "30,816 parameters from 2 files, output of its own" in shown
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_a_name_stands_for_goes_out_as_llama_too(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    from tunesmith.model import catalog

    asked: list[str] = []

    def fetch(name: str, **_: object) -> object:
        asked.append(name)
        return SimpleNamespace(path=model_dir)

    monkeypatch.setattr(catalog, "fetch_model", fetch)
    assert "in 2 files" in weights("to-llama", "smollm2-135m", tmp_path / "7B", "--shards", 2)
    assert asked == ["smollm2-135m"]


def test_a_delta_is_made_and_applied(tmp_path: Path, model_dir: Path, tuned_dir: Path):
    shown = weights("make-delta", model_dir, tuned_dir, tmp_path / "delta")
    assert "20 tensors as differences, 0 of them without a change, 0 stored whole" in shown
    shown = weights("apply-delta", model_dir, tmp_path / "delta", tmp_path / "again")
    assert "every file has the sha256 its maker had" in shown
    for file in tuned_dir.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(ModelError, match="not the base that the delta was made from"):
        weights("apply-delta", tuned_dir, tmp_path / "delta", tmp_path / "wrong")


def test_a_gguf_file_becomes_a_folder(tmp_path: Path, model_dir: Path):
    from small_models import TEMPLATE
    from tunesmith.exporting.gguf_file import Labels, plan_gguf, write_gguf

    plan = plan_gguf(
        model_dir, quantisation="f16", chat_template=TEMPLATE, stop_ids=(2,), labels=Labels("tiny", "mit", "tiny")
    )
    write_gguf(plan, tmp_path / "tiny.gguf", num_threads=1, on_done=lambda _: None)
    assert "parameters" in weights("from-gguf", tmp_path / "tiny.gguf", tmp_path / "tiny")
    before, after = (load_file(folder / "model.safetensors") for folder in (model_dir, tmp_path / "tiny"))
    for name, tensor in before.items():
        assert torch.equal(tensor.to(torch.float16).to(torch.bfloat16), after[name]), name
    assert (tmp_path / "tiny" / "tokenizer.json").is_file()
    assert (tmp_path / "tiny" / "chat_template.jinja").read_text() == TEMPLATE


def test_the_context_report_is_a_table_or_json(tmp_path: Path, model_dir: Path):
    (tmp_path / "book.txt").write_text("the bicycle is broken and the fox jumps over it\n" * 300)
    shown = weights("context-report", model_dir, tmp_path / "book.txt", "--length", 256, "--windows", 3)
    rows = re.findall(r"^\s*([\d,]+) – ([\d,]+)\s+([\d.]+)\s+[\d.]+\s+[\d,.]+\s+(\d+)\s+3", shown, re.MULTILINE)
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("0", "63", "189"),
        ("64", "127", "192"),
        ("128", "255", "384"),
    ]
    assert "765 tokens in 3 windows of at most 256, from 1 texts" in shown
    printed = json.loads(
        weights("context-report", model_dir, tmp_path / "book.txt", "--length", 256, "--windows", 3, "--json")
    )
    assert [bucket["num_tokens"] for bucket in printed["buckets"]] == [189, 192, 384]
    assert [f"{bucket['mean_loss']:.4f}" for bucket in printed["buckets"]] == [row[2] for row in rows]
    assert (printed["length"], printed["rope_scaling"]) == (256, "none")


def test_the_context_report_tries_a_scaling_before_it_is_trained(tmp_path: Path, model_dir: Path):
    (tmp_path / "book.txt").write_text("the bicycle is broken and the fox jumps over it\n" * 400)
    arguments = ["context-report", model_dir, tmp_path / "book.txt", "--length", 1024, "--windows", 1, "--json"]
    losses = {
        scaling: json.loads(weights(*arguments, "--rope-scaling", scaling))["mean_loss"]
        for scaling in ("extrapolate", "linear", "yarn")
    }
    assert len(set(losses.values())) == 3
    with pytest.raises(RecipeError, match=r"reads 512 tokens|more than the model's 512 tokens"):
        weights("context-report", model_dir, tmp_path / "book.txt", "--length", 256, "--rope-scaling", "yarn")


def test_a_chat_is_no_long_text(tmp_path: Path, model_dir: Path):
    (tmp_path / "chat.jsonl").write_text('{"instruction": "a", "input": "", "output": "b"}\n')
    with pytest.raises(DataError, match="there is no plain text here"):
        weights("context-report", model_dir, tmp_path / "chat.jsonl")


def test_nothing_is_overwritten(tmp_path: Path, model_dir: Path, tuned_dir: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    commands = [
        ("to-llama", model_dir, tmp_path / "out", "--shards", 1),
        ("from-llama", model_dir, tmp_path / "out"),
        ("make-delta", model_dir, tuned_dir, tmp_path / "out"),
        ("apply-delta", model_dir, tuned_dir, tmp_path / "out"),
        ("from-gguf", model_dir, tmp_path / "out"),
    ]
    for command in commands:
        with pytest.raises(RecipeError, match="there is something here already"):
            weights(*command)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_full_disk_is_seen_before_the_work(tmp_path: Path, model_dir: Path, tuned_dir: Path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(tensor_files.shutil, "disk_usage", lambda _: usage)
    for command in (
        ("to-llama", model_dir, tmp_path / "o", "--shards", 1),
        ("make-delta", model_dir, tuned_dir, tmp_path / "o"),
    ):
        with pytest.raises(StoreError, match=r"GB, and 0\.00 GB are free"):
            weights(*command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["from-llama", "to-llama", "make-delta", "apply-delta", "from-gguf", "context-report"]
)
def test_every_command_shows_an_example_of_itself(command: str):
    assert f"tunesmith weights {command} " in weights(command, "--help").replace("\n", " ")
