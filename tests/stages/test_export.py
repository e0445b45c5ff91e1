"""Stage export: a small model with an adapter becomes files; what goes wrong leaves none under its final name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from small_models import STOP_ID, TEMPLATE, build_model
from tunesmith.errors import ExportError, RecipeError, TemplateMismatch
from tunesmith.events import Progress
from tunesmith.hashing import digest_file, digest_text
from tunesmith.model.adapters import (
    AdapterConfig,
    adapter_layers,
    add_adapter,
    choose_targets,
    save_adapter,
    target_names,
)
from tunesmith.model.load import load_model
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection, Export, Runtime
from tunesmith.stages import base_model, export
from tunesmith.store import Identity, Store
from tunesmith.text.jsonl import write_records
from tunesmith.types import Artifact, Conversation, Inputs, Message, Outcome, Task

pytestmark = pytest.mark.slow

TEXTS = ["where is my order?", "the quick brown fox", "my bicycle's wheel is broken; please refund", "2024 退款 🚲"]


def commit(store: Store, stage: str, section: dict[str, Any], outcome: Outcome) -> Artifact:
    return store.commit(Identity(stage, 1, section, {}), outcome, 0.0)


def partial_dir(store: Store, stage: str, section: dict[str, Any]) -> Path:
    path = store.partial_dir(Identity(stage, 1, section, {}))
    path.mkdir(parents=True)
    return path


def adapter_of(base_dir: Path, folder: Path, strength: float) -> None:
    """An adapter as training leaves it: both matrices filled."""
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    targets = choose_targets(model, ["all-linear"])
    config = AdapterConfig(
        rank=4,
        alpha=8,
        dropout=0.0,
        targets=targets,
        target_names=target_names(model, targets),
        base_model="small",
    )
    add_adapter(model, config, rng_seed=3)
    torch.manual_seed(4)
    weights = {}
    for path, layer in adapter_layers(model).items():
        layer.lora_B.data.normal_(std=strength)
        weights |= {f"{path}.lora_A": layer.lora_A, f"{path}.lora_B": layer.lora_B}
    save_adapter(folder, config, weights)


@pytest.fixture
def ctx(sink) -> Context:
    """One thread: on a busy machine llama.cpp's threads wait for each other."""
    return Context(events=sink, runtime=Runtime(num_threads=1))


@pytest.fixture
def inputs(tmp_path: Path, ctx) -> Inputs:
    """Artifacts of the stages before export, committed as the pipeline commits them."""
    base_dir = build_model(tmp_path / "small")
    store = Store(tmp_path / "runs")
    store.create()
    section = {"name": str(base_dir)}
    outcome = base_model.run(
        BaseModelSection(name=str(base_dir)), Inputs({}, {}), partial_dir(store, "base_model", section), ctx
    )
    base = commit(store, "base_model", section, outcome)
    curated_dir = partial_dir(store, "curate", {})
    task = Task(description="Sorts messages.", system_prompt="Be brief.")
    system = Message(role="system", content="Be brief.")
    rows = [
        Conversation(
            messages=[system, Message(role="user", content=text), Message(role="assistant", content='{"a": 1}')],
            licence="cc0",
        )
        for text in TEXTS
    ]
    write_records(curated_dir / "train.jsonl", rows)
    write_records(curated_dir / "test.jsonl", rows[:3])
    curated = commit(store, "curate", {}, Outcome("curated", {"train": 4, "test": 3}, {}))
    trained_dir = partial_dir(store, "train", {"method": "lora", "lora_rank": 4})
    adapter_of(base_dir, trained_dir / "adapter", strength=0.05)
    (trained_dir / "chat_template.jinja").write_text(TEMPLATE)
    write_records(trained_dir / "task.json", [task])
    facts = {
        "method": "lora",
        "base_weights_digest": base.facts["weights_digest"],
        "template_digest": digest_text(TEMPLATE),
        "stop_ids": [STOP_ID],
        "num_steps": 5,
        "num_trainable": 100,
        "first_loss": 2.0,
        "final_loss": 0.5,
    }
    trained = commit(store, "train", {"method": "lora", "lora_rank": 4}, Outcome("checkpoint", {"steps": 5}, facts))
    return Inputs({"train": trained, "curate": curated, "base_model": base}, {})


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


ALL = Export(formats=("safetensors", "gguf-f16", "gguf-q8_0"), num_check_prompts=3)
ONE = Export(formats=("safetensors", "gguf-f16"), num_check_prompts=1)
FOLDER = Export(formats=("safetensors",))


def final_files(out_dir: Path) -> set[str]:
    return {
        path.relative_to(out_dir).as_posix()
        for path in out_dir.rglob("*")
        if path.is_file() and "scratch" not in path.relative_to(out_dir).parts
    }


def test_every_format_is_written_checked_and_described(inputs, out_dir, ctx, sink):
    outcome = export.run(ALL, inputs, out_dir, ctx)
    assert outcome.kind == "exported"
    assert outcome.facts == {
        "name": "small-tuned",
        "template_digest": digest_text(TEMPLATE),
        "stop_ids": [STOP_ID],
        "context_length": 512,
        "files": ["gguf/small-tuned-f16.gguf", "gguf/small-tuned-q8_0.gguf", "safetensors/model.safetensors"],
    }
    assert {"README.md", "Modelfile", "checks.json", "task.json", "chat_template.jinja"} <= final_files(out_dir)
    checks = json.loads((out_dir / "checks.json").read_bytes())
    assert checks["merge"]["max_logit_difference"] < 1e-3
    assert checks["merge"]["num_rows"] == 3
    f16 = checks["gguf"]["small-tuned-f16.gguf"]
    assert f16["tokens"]["num_equal"] == 500
    assert f16["answers"]["num_prompts"] == 3
    assert f16["answers"]["mean_logprob_difference"] < 0.01
    card = (out_dir / "README.md").read_text()
    assert inputs["curate"].manifest.digest in card
    assert "cc0 (4 rows)" in card
    assert "Be brief." in (out_dir / "Modelfile").read_text()
    tasks = {event.task for event in sink.events if isinstance(event, Progress)}
    assert {"merge", "write small-tuned-f16.gguf", "check small-tuned-q8_0.gguf"} <= tasks


def test_the_merged_folder_is_base_plus_adapter(inputs, out_dir, ctx):
    export.run(FOLDER, inputs, out_dir, ctx)
    merged = AutoModelForCausalLM.from_pretrained(out_dir / "safetensors")
    base = AutoModelForCausalLM.from_pretrained(inputs["base_model"].facts["name"])
    assert merged.dtype == torch.bfloat16
    difference = (merged.model.layers[0].mlp.up_proj.weight - base.model.layers[0].mlp.up_proj.weight).float()
    assert torch.linalg.matrix_rank(difference, tol=0.3).item() == 4
    assert torch.equal(merged.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_the_gguf_file_carries_template_and_stop_ids(inputs, out_dir, ctx):
    export.run(Export(formats=("gguf-q4_k_m",), num_check_prompts=0), inputs, out_dir, ctx)
    reader = GGUFReader(out_dir / "gguf" / "small-tuned-q4_k_m.gguf")
    assert reader.get_field("tokenizer.chat_template").contents() == TEMPLATE  # pyright: ignore
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == STOP_ID  # pyright: ignore
    assert not (out_dir / "safetensors").exists()
    assert json.loads((out_dir / "checks.json").read_bytes())["gguf"]["small-tuned-q4_k_m.gguf"]["answers"] is None


def test_the_same_inputs_give_the_same_bytes(inputs, tmp_path, ctx):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export.run(ONE, inputs, tmp_path / name, ctx)
        digests.append({file: digest_file(tmp_path / name / file) for file in final_files(tmp_path / name)})
    assert digests[0] == digests[1]


def test_no_final_file_names_a_place_of_this_machine(inputs, out_dir, ctx, tmp_path):
    export.run(FOLDER, inputs, out_dir, ctx)
    for name in final_files(out_dir) - {"README.md"}:  # the card names the base model, here a folder
        assert str(tmp_path).encode() not in (out_dir / name).read_bytes(), name


def test_a_finished_file_is_not_made_again(inputs, out_dir, ctx, monkeypatch):
    export.run(ONE, inputs, out_dir, ctx)
    before = {name: (out_dir / name).stat().st_mtime_ns for name in final_files(out_dir) if name.endswith("gguf")}
    monkeypatch.setattr(export, "write_gguf", lambda *_, **__: pytest.fail("written again"))
    monkeypatch.setattr(export, "save_whole", lambda *_, **__: pytest.fail("merged again"))
    export.run(ONE, inputs, out_dir, ctx)
    assert before == {name: (out_dir / name).stat().st_mtime_ns for name in before}


STEPS = ["save_whole", "check_cast", "write_gguf", "check_read_back", "check_tokens", "check_answers"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_nothing_unchecked_under_its_final_name(inputs, out_dir, ctx, monkeypatch, step):
    with monkeypatch.context() as patch:

        def fail(*_args: Any, **_kwargs: Any) -> None:
            raise ExportError("no")

        patch.setattr(export, step, fail)
        with pytest.raises(ExportError, match="no"):
            export.run(ONE, inputs, out_dir, ctx)
    left = final_files(out_dir)
    assert not [
        name for name in left if name.endswith((".gguf", ".md", ".json")) and not name.startswith("safetensors/")
    ]
    assert bool(left) == (step not in ("save_whole", "check_cast"))  # the folder had passed its own checks
    assert len(export.run(ONE, inputs, out_dir, ctx).facts["files"]) == 2


def test_a_folder_without_the_record_of_its_checks_is_made_anew(inputs, out_dir, ctx):
    (out_dir / "safetensors").mkdir()
    (out_dir / "safetensors" / "model.safetensors").write_bytes(b"torn")
    export.run(FOLDER, inputs, out_dir, ctx)
    assert AutoModelForCausalLM.from_pretrained(out_dir / "safetensors").num_parameters() > 1000


def test_merging_that_changes_the_model_is_refused(inputs, out_dir, ctx, monkeypatch):
    def wrong(model):
        merged = export_merge(model)
        merged.model.layers[0].mlp.up_proj.weight.data *= 1.1
        return merged

    export_merge = export.merge_adapter
    monkeypatch.setattr(export, "merge_adapter", wrong)
    with pytest.raises(ExportError, match="merging changed the model: logits differ by up to"):
        export.run(FOLDER, inputs, out_dir, ctx)
    assert not final_files(out_dir)


def test_an_unknown_format_is_an_error_before_any_work(inputs, out_dir, ctx):
    with pytest.raises(RecipeError) as caught:
        export.run(Export(formats=("gguf-q4_km",)), inputs, out_dir, ctx)
    assert caught.value.hint == "did you mean 'gguf-q4_k_m'?"
    assert not list(out_dir.iterdir())


def test_a_model_that_has_no_gguf_form_is_refused_before_it_is_merged(inputs, out_dir, ctx, monkeypatch):
    monkeypatch.setattr(export, "check_exportable", lambda *_: (_ for _ in ()).throw(ExportError("cannot be written")))
    monkeypatch.setattr(export, "load_checkpoint", lambda *_, **__: pytest.fail("merged"))
    with pytest.raises(ExportError, match="cannot be written"):
        export.run(ONE, inputs, out_dir, ctx)


def test_another_chat_template_than_the_trained_one_is_refused(inputs, out_dir, ctx):
    inputs["train"].file("chat_template.jinja").write_text(TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"))
    with pytest.raises(TemplateMismatch, match="the model was trained with"):
        export.run(ONE, inputs, out_dir, ctx)


def test_a_disk_too_small_is_told_with_the_bytes_it_would_take(inputs, out_dir, ctx, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ExportError, match=r"needs up to [\d,]+ bytes, and 10 are free"):
        export.run(ONE, inputs, out_dir, ctx)


def test_prompts_longer_than_the_check_allows_are_left_out_with_a_note(inputs, out_dir, ctx, sink, monkeypatch):
    monkeypatch.setattr(export, "_LONGEST_PROMPT", 5)
    export.run(Export(formats=("gguf-f16",), num_check_prompts=3), inputs, out_dir, ctx)
    assert any("compared on 0 prompts, not 3" in getattr(event, "message", "") for event in sink.events)


def test_scores_of_the_evaluation_are_in_the_card(inputs, out_dir, ctx):
    facts = {"tuned": {"json_valid": {"value": 0.98, "stderr": 0.02, "n": 50}}}
    curated = inputs["curate"]
    evaluated = Artifact(curated.path, curated.manifest.model_copy(update={"facts": facts}))
    given = Inputs({**inputs.artifacts, "evaluate": evaluated}, {})
    export.run(FOLDER, given, out_dir, ctx)
    assert "| tuned | 0.98 ± 0.02 (n=50) |" in (out_dir / "README.md").read_text()
