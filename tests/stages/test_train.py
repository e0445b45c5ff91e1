"""Stage train on a tiny model: what it writes, that others can load it, that it resumes, what it refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from made_artifact import artifact
from tunesmith.errors import RecipeError, TrainingError
from tunesmith.events import Metric, Note
from tunesmith.model.load import load_checkpoint, load_model
from tunesmith.protocols import Context
from tunesmith.recipe import Runtime, Train
from tunesmith.stages import train as stage
from tunesmith.stages.train import choose_device, run
from tunesmith.training import saving
from tunesmith.types import Artifact, Inputs, Outcome

LENGTHS = [30, 12, 25, 40, 8, 33, 21, 17]


@pytest.fixture
def inputs(base_dir: Path, tmp_path: Path) -> Inputs:
    tokenized = tmp_path / "tokenized"
    tokenized.mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        "input_ids": rng.integers(3, 300, size=sum(LENGTHS)).astype(np.int32),
        "loss_mask": np.concatenate([np.arange(n) >= n // 2 for n in LENGTHS]).astype(np.uint8),
        "owner": np.zeros(sum(LENGTHS), dtype=np.int16),
        "lengths": np.array(LENGTHS, dtype=np.int64),
    }
    save_file(arrays, str(tokenized / "samples.safetensors"))
    rows = [{"id": f"row-{i}", "length": n, "num_supervised": n - n // 2} for i, n in enumerate(LENGTHS)]
    (tokenized / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tokenized / "chat_template.jinja").write_text("{{ messages }}")
    (tokenized / "task.json").write_text('{"description": "x"}')
    base = tmp_path / "base_model"
    (base / "logs").mkdir(parents=True)
    (base / "logs" / "location.json").write_text(json.dumps({"path": str(base_dir), "gguf": None, "name": "tiny"}))
    facts = {"pack_length": 64, "template_digest": "t", "stop_ids": [2], "max_length": 40}
    base_facts = {"name": "tiny", "source": "test", "weights_digest": "w", "context_length": 512}
    return Inputs(
        {"tokenize": artifact(tokenized, "tokenized", facts), "base_model": artifact(base, "base_model", base_facts)},
        {},
    )


@pytest.fixture
def call(inputs: Inputs, tmp_path: Path, sink: Any, monkeypatch: pytest.MonkeyPatch, base_dir: Path) -> Any:
    monkeypatch.setattr(stage, "base_model_path", lambda _: base_dir)

    def start(folder: str = "out", *, events: Any = None, runtime: dict[str, Any] | None = None, **section: Any) -> Any:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        options = {"num_threads": 1, "precision": "fp32", **(runtime or {})}
        options_of_training = {"num_epochs": 2, "learning_rate": 1e-3, "lora_rank": 4, **section}
        ctx = Context(events=events or sink, runtime=Runtime(**options))
        return out, run(Train(**options_of_training), inputs, out, ctx)

    return start


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def as_checkpoint(out: Path, outcome: Outcome) -> Artifact:
    return artifact(out, outcome.kind, outcome.facts)


def test_lora_writes_exactly_the_files_of_the_contract(call: Any) -> None:
    out, outcome = call()
    assert files(out) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "chat_template.jinja",
        "losses.jsonl",
        "task.json",
        "logs/metrics.jsonl",
    }
    losses = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses] == list(range(1, 7))
    assert outcome.kind == "checkpoint"
    assert outcome.facts == {
        "method": "lora",
        "base_weights_digest": "w",
        "template_digest": "t",
        "stop_ids": [2],
        "max_length": 40,
        "num_steps": 6,
        "num_trainable": 8192,
        "first_loss": losses[0]["loss"],
        "final_loss": losses[-1]["loss"],
    }
    assert outcome.counts["supervised_tokens_seen"] == 2 * sum(n - n // 2 for n in LENGTHS)


def test_full_writes_a_model_folder_in_the_bases_dtype_with_its_tokenizer(call: Any, base_dir: Path) -> None:
    out, outcome = call(method="full")
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json"} <= files(out)
    assert not any(name.startswith("adapter") for name in files(out))
    assert json.loads((out / "model/config.json").read_text())["dtype"] == "bfloat16"
    tuned = load_checkpoint(as_checkpoint(out, outcome), Path("/nowhere"), device="cpu", dtype=torch.float32)
    base = load_model(base_dir, device="cpu", dtype=torch.float32)
    moved = [name for name, p in base.named_parameters() if not torch.equal(p, tuned.get_parameter(name))]
    assert len(moved) == len(list(base.named_parameters()))
    assert (out / "model/tokenizer.json").read_bytes() == (base_dir / "tokenizer.json").read_bytes()


def test_the_adapter_answers_the_same_through_peft(call: Any, base_dir: Path) -> None:
    from peft import PeftModel

    out, outcome = call(num_epochs=10)
    ours = load_checkpoint(as_checkpoint(out, outcome), base_dir, device="cpu", dtype=torch.float32)
    base = load_model(base_dir, device="cpu", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(base, out / "adapter").eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        found, expected = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
        with theirs.disable_adapter():
            plain = theirs(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 0.05


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_runs_write_the_same_bytes(call: Any, method: str) -> None:
    (first, one), (second, two) = call("a", method=method), call("b", method=method)
    assert one == two
    for name in files(first) - {"logs/metrics.jsonl"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert str(first).encode() not in (first / name).read_bytes()


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_an_interrupted_run_resumes_to_the_same_bytes(call: Any, method: str) -> None:
    class Interrupt:
        def emit(self, event: Any) -> None:
            if isinstance(event, Metric) and event.step == 3:
                raise KeyboardInterrupt

    whole, expected = call("whole", method=method)
    with pytest.raises(KeyboardInterrupt):
        call("parts", method=method, events=Interrupt())
    assert (whole.parent / "parts/scratch/checkpoints/step-000003").is_dir()
    parts, found = call("parts", method=method)
    assert found == expected
    for name in files(whole) - {"logs/metrics.jsonl"}:
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_the_choice_of_arithmetic_is_said_with_its_numbers(call: Any, sink: Any) -> None:
    call(runtime={"precision": "auto"})
    notes = [event.message for event in sink.events if isinstance(event, Note)]
    assert any("GFLOP/s in bf16" in note and "training on cpu" in note for note in notes)
    assert any("peak memory" in note and "6 steps" in note for note in notes)


def test_threads_are_as_before_afterwards(call: Any) -> None:
    before = torch.get_num_threads()
    call(runtime={"num_threads": 1})
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu:0", "is no device|not supported"), ("cuda:99", "torch sees"), ("meta", "not supported")],
)
def test_a_device_that_is_not_there_is_an_error(device: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        choose_device(device)
    assert caught.value.where == "recipe.runtime.device"


def test_an_unknown_target_module_is_an_error_before_any_step(call: Any, sink: Any) -> None:
    with pytest.raises(RecipeError, match="no linear map named 'c_attn'"):
        call(lora_target_modules=["c_attn"])
    assert not any(isinstance(event, Metric) for event in sink.events)


def test_an_adapter_that_reads_back_differently_fails_the_stage(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = saving.load_adapter

    def flipped(model: Any, folder: Path) -> Any:
        config = real(model, folder)
        model.model.layers[0].mlp.up_proj.lora_B.data[0, 0] += 1e-3
        return config

    monkeypatch.setattr(saving, "load_adapter", flipped)
    with pytest.raises(TrainingError, match="read back gives other logits"):
        call()


@pytest.mark.real
def test_the_embedded_model_learns_a_line_and_peft_agrees(
    smollm2_dir: Path, inputs: Inputs, tmp_path: Path, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "base_model_path", lambda _: smollm2_dir)
    section = Train(max_steps=6, num_epochs=6, learning_rate=1e-3, lr_schedule="constant", warmup_ratio=0)
    out = tmp_path / "out"
    out.mkdir()
    outcome = run(section, inputs, out, Context(events=sink, runtime=Runtime()))
    assert outcome.facts["final_loss"] < outcome.facts["first_loss"] - 0.5
    assert outcome.facts["num_trainable"] == 4_884_480
