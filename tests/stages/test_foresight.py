"""What a late stage would refuse on this machine is refused before the first stage, which may cost money."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.errors import ModelError, RecipeError
from tunesmith.events import StageFailed, StageFinished
from tunesmith.pipeline import execute
from tunesmith.resolve import resolve_mapping
from tunesmith.stages import foresight
from tunesmith.stages.train import choose_device
from tunesmith.store import Store
from tunesmith.training.ranks import Ranks

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.fixture
def start(tmp_path: Path, sink: Any) -> Any:
    """A recipe whose first paid stage writes rows; the model named in it does not matter before."""
    rows = [{"instruction": f"say {word}", "output": "dog"} for word in ("fox", "hare", "cat")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "teacher.jsonl").write_text('{"text": "x"}\n')

    def run(*overrides: str, until: str | None = None) -> Any:
        recipe = {
            "name": "tiny",
            "base_model": "smollm2-135m",
            "ingest": {"files": ["rows.jsonl"], "task": "Answer in one word."},
            "generate": {"teacher": {"kind": "scripted", "script": "teacher.jsonl"}, "num_rows": 1},
        }
        resolved = resolve_mapping(recipe, folder=tmp_path, overrides=overrides)
        return execute(resolved, Store(tmp_path / "root"), sink, until)

    return run


@needs_no_gpu
def test_qlora_without_a_graphics_card_is_refused_before_anything_is_paid(
    start: Any, tmp_path: Path, sink: Any
) -> None:
    with pytest.raises(RecipeError, match="trains on a CUDA device") as caught:
        start("train.method=qlora")
    assert caught.value.where == "recipe.train.method"
    assert sink.events == [] and not (tmp_path / "root").exists()


@needs_no_gpu
def test_stages_that_need_no_such_card_run_all_the_same(start: Any) -> None:
    run = start("train.method=qlora", until="ingest")
    assert run.artifacts()["ingest"].manifest.counts["kept"] == 3


def test_a_device_that_is_not_there_is_refused_before_anything_is_paid(start: Any, sink: Any) -> None:
    with pytest.raises(RecipeError, match="cuda:99") as caught:
        start("runtime.device=cuda:99")
    assert (caught.value.where, sink.events) == ("recipe.runtime.device", [])


@pytest.mark.parametrize("torchrun", [False, True])
def test_one_device_for_several_processes_is_refused_before_anything_is_paid(
    start: Any, sink: Any, monkeypatch: pytest.MonkeyPatch, torchrun: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    several = "runtime.num_processes=2"
    if torchrun:
        several = "runtime.num_processes=auto"
        for name, value in {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="2 processes cannot share the one device 'cuda:1'") as caught:
        start("runtime.device=cuda:1", several)
    assert (caught.value.where, sink.events) == ("recipe.runtime.device", [])
    assert "device: cuda, and each process" in str(caught.value.hint)


def test_more_processes_than_devices_are_refused_before_anything_is_paid(
    start: Any, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match="3 processes need as many CUDA devices, and torch sees 2"):
        start("runtime.device=cuda", "runtime.num_processes=3")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="torchrun has started 4 processes on this machine, and torch sees 2"):
        start("runtime.device=cuda")
    assert sink.events == []


def test_each_rank_of_a_machine_has_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(Ranks, "current", lambda: Ranks(7, 8))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda") == torch.device("cuda", 3)
    with pytest.raises(RecipeError, match="8 processes cannot share"):
        choose_device("cuda:1")


@pytest.mark.parametrize("template", ["chatml", "own.jinja", "auto"])
def test_a_condition_that_the_template_does_not_write_is_refused_before_anything_is_paid(
    start: Any, tmp_path: Path, sink: Any, base_dir: Path, template: str
) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(RecipeError, match="writes no condition") as caught:
        start("evaluate.condition=GPT3", f"tokenize.chat_template={template}", f"base_model={base_dir}")
    assert (caught.value.where, sink.events) == ("recipe.evaluate.condition", [])


def test_a_condition_is_refused_before_training_where_the_model_and_its_template_had_to_be_fetched_first(
    start: Any, sink: Any, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "folder_at_hand", lambda name, revision: None)
    with pytest.raises(RecipeError, match="writes no condition"):
        start("evaluate.condition=GPT3", "generate=null", f"base_model={base_dir}")
    finished = [event.stage for event in sink.events if isinstance(event, StageFinished)]
    failed = [(event.stage, event.where) for event in sink.events if isinstance(event, StageFailed)]
    assert (finished, failed) == (["ingest", "curate", "base_model"], [("tokenize", "recipe.evaluate.condition")])


def test_a_template_that_nobody_knows_is_refused_before_anything_is_paid(start: Any, sink: Any) -> None:
    with pytest.raises(RecipeError, match="no built-in chat template named 'openchat'") as caught:
        start("tokenize.chat_template=openchat")
    assert ("openchat-3.5" in str(caught.value.hint), sink.events) == (True, [])


@pytest.mark.parametrize(("name", "said"), [("smolm2-135m", "no model named"), ("./mine.gguf", "no such .gguf file")])
def test_a_model_that_cannot_be_there_is_refused_before_anything_is_paid(
    start: Any, sink: Any, name: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        start(f"base_model={name}")
    assert sink.events == []


def test_a_file_of_the_last_stage_is_looked_for_before_the_first(start: Any, sink: Any) -> None:
    with pytest.raises(RecipeError, match=r"a file that is not there: reward\.py"):
        start("align.loss=grpo", "align.rewards=[{name: python, function: 'reward.py:polite'}]")
    assert sink.events == []


def test_a_loss_that_nobody_knows_is_refused_when_the_recipe_is_read(start: Any) -> None:
    for where, wanted in [("align.loss", "'orpo'"), ("train.loss", "'cross_entropy'")]:
        with pytest.raises(RecipeError, match=f"{wanted}.*found 'opro'") as caught:
            start(f"{where}=opro")
        assert caught.value.where == f"recipe.{where} (--set)"
