"""A recipe that asks for longer context: trained on samples the base could not hold, exported with its scaling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.numpy import load_file

from shelf import ShelfStore
from small_models import build_model
from tunesmith.errors import ExportError, ModelError
from tunesmith.model.load import load_model
from tunesmith.pipeline import execute
from tunesmith.resolve import resolve_mapping
from tunesmith.store import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads 64 tokens, rows of about 120, and shorter ones."""
    folder = tmp_path_factory.mktemp("longer")
    build_model(folder / "tiny", max_position_embeddings=64)
    for name, words in (("long", 25), ("short", 5)):
        talks = [
            [{"role": "user", "content": f"where is order {n}"}, {"role": "assistant", "content": "x y " * words}]
            for n in range(12)
        ]
        lines = [json.dumps({"messages": talk}) + "\n" for talk in talks]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def start(
    folder: Path,
    root: Path,
    sink,
    rows: str,
    formats: list[str],
    until: str | None = None,
    template="auto",
    **base_model,
) -> Run:
    recipe = {
        "name": "long",
        "base_model": {"name": "tiny", **base_model},
        "ingest": {"files": [f"{rows}.jsonl"], "test_fraction": 0.2},
        "curate": {"max_similarity": 1.0},
        "tokenize": {"chat_template": template},
        "train": {"method": "full", "max_steps": 3, "learning_rate": 1e-3},
        "evaluate": None,
        "export": {"formats": formats, "num_check_prompts": 3, "max_logit_difference": 1e-2},
        "runtime": {"num_threads": 1, "precision": "fp32"},
    }
    return execute(resolve_mapping(recipe, folder=folder), ShelfStore(root, folder / "shelf"), sink, until)


def test_yarn_twice_as_long_trains_and_the_export_carries_it(folder: Path, tmp_path: Path, sink):
    run = start(
        folder, tmp_path / "runs", sink, "long", ["safetensors", "gguf-f16"],
        context_length=128, rope_scaling="yarn", add_tokens=["<|end_of_turn|>"],
    )  # fmt: skip
    tokenized, trained, exported = (run.artifact(stage) for stage in ("tokenize", "train", "export"))
    assert tokenized is not None and trained is not None and exported is not None
    assert 64 < tokenized.facts["max_length"] <= 128
    assert tokenized.manifest.counts["dropped"] == 0
    assert trained.facts["final_loss"] < trained.facts["first_loss"]
    config = json.loads((exported.path / "safetensors" / "config.json").read_bytes())
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    assert (config["rope_parameters"], config["max_position_embeddings"], config["vocab_size"]) == (rope, 128, 401)
    assert exported.facts["context_length"] == 128
    fields = GGUFReader(next((exported.path / "gguf").glob("*.gguf"))).fields
    values = {name: field.contents() for name, field in fields.items() if name.startswith("llama.")}
    assert values["llama.rope.scaling.type"] == "yarn"
    assert values["llama.rope.scaling.factor"] == 2.0
    assert values["llama.rope.scaling.original_context_length"] == 64
    assert values["llama.context_length"] == 128
    assert values["llama.vocab_size"] == 401


def test_without_scaling_the_same_rows_are_too_long(folder: Path, tmp_path: Path, sink):
    with pytest.raises(Exception, match=r"longer than|64 tokens|overlong"):
        start(folder, tmp_path / "runs", sink, "long", ["safetensors"], until="tokenize")


def test_dynamic_scaling_has_no_place_in_a_gguf_file_and_none_in_training_on_longer_text(
    folder: Path, tmp_path: Path, sink
):
    changes = {"context_length": 128, "rope_scaling": "dynamic"}
    with pytest.raises(ModelError, match=r"rotary scaling \(dynamic\) turns every sample of a batch by the longest"):
        start(folder, tmp_path / "runs", sink, "long", ["safetensors"], **changes)
    with pytest.raises(ExportError, match="rotary scaling of type 'dynamic' cannot be written into a GGUF file"):
        start(folder, tmp_path / "runs", sink, "short", ["gguf-f16"], **changes)
    run = start(folder, tmp_path / "runs", sink, "short", ["safetensors"], **changes)  # training is not repeated
    exported = run.artifact("export")
    assert exported is not None
    model = load_model(exported.path / "safetensors", device="cpu", dtype=torch.float32)
    assert model.config.rope_parameters == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert exported.facts["context_length"] == 128


def test_a_template_that_needs_a_new_end_of_turn_gets_it(folder: Path, tmp_path: Path, sink):
    """OpenChat's way: its template on a base model that has no such token, and a limit that is simply raised."""
    with pytest.raises(ModelError, match=r"ends an answer with .<\|end_of_turn\|>., which holds no token"):
        start(folder, tmp_path / "a", sink, "short", ["safetensors"], until="tokenize", template="openchat-3.5")
    run = start(
        folder, tmp_path / "b", sink, "short", ["safetensors"], until="tokenize", template="openchat-3.5",
        add_tokens=["<|end_of_turn|>"], rope_scaling="extrapolate", context_length=128,
    )  # fmt: skip
    tokenized = run.artifact("tokenize")
    assert tokenized is not None
    assert tokenized.facts["stop_ids"] == [400]
    ids = load_file(tokenized.path / "samples.safetensors")["input_ids"]
    assert (ids == 400).sum() == 2 * tokenized.facts["num_samples"]  # one for each turn
