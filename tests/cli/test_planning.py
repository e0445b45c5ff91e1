"""`tunesmith plan` counts rows as ingest does, and its estimates follow the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.cli import counting, planning
from tunesmith.cli.counting import count_examples
from tunesmith.model.catalog import ModelListing

ROWS = [{"question": f"What is number {i}?", "response": f"It is\nnumber {i}."} for i in range(40)]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_has_as_many_rows_however_it_is_printed(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=indent))
    counted = count_examples(tmp_path / "a.json")
    assert (counted.num_rows, counted.num_rejected, counted.exact) == (40, 0, True)


def test_rows_that_cannot_be_used_are_counted_apart(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS[:3]]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{broken"]))
    counted = count_examples(tmp_path / "a.jsonl")
    assert (counted.num_rows, counted.num_rejected) == (3, 1)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_large_file_is_guessed_from_its_beginning(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_COUNTED_BYTES", 8192)
    monkeypatch.setattr(counting, "_COPY_BYTES", 1024)
    rows = ROWS * 100
    text = json.dumps(rows) if name == "a.json" else "\n".join(json.dumps(row) for row in rows)
    (tmp_path / name).write_text(text)
    counted = count_examples(tmp_path / name)
    assert not counted.exact and counted.num_rows == pytest.approx(4000, rel=0.03)


def _plan(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    (folder / "a.json").write_text(json.dumps(ROWS))
    (folder / "recipe.yaml").write_text("name: desk\nbase_model: smollm2-135m\ningest: {files: a.json}\n")
    planning.show_plan(folder, overrides, folder / "runs")
    return capsys.readouterr().out


@pytest.mark.parametrize(("at_hand", "said"), [(True, "at hand"), (False, "93 MB to fetch, once")])
def test_a_model_at_hand_is_not_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at_hand: bool, said: str
) -> None:
    listing: list[Any] = [ModelListing("smollm2-135m", "", 134_515_008, 93_000_000, "apache-2.0", "registry", at_hand)]
    monkeypatch.setattr(planning, "list_models", lambda: listing)
    shown = _plan(tmp_path, capsys)
    assert said in shown and "40 rows" in shown


def test_the_last_step_ends_the_estimate_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1,024 tokens" in _plan(
        tmp_path, capsys, "train.max_steps=2", "tokenize.pack_length=512", "train.num_epochs=50"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_what_run_would_refuse_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = _plan(tmp_path, capsys, "train.method=qlora")
    assert "40 rows" in shown and "`run` refuses this: recipe.train.method: `method: qlora`" in shown
    assert "take `method: lora`" in shown
    assert "refuses" not in _plan(tmp_path, capsys)


def test_a_condition_that_the_template_does_not_write_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`run` refuses this: recipe.evaluate.condition" in _plan(
        tmp_path, capsys, "evaluate.condition=GPT3", "tokenize.chat_template=chatml"
    )
    assert "refuses" not in _plan(tmp_path, capsys, "evaluate.condition=GPT3", "tokenize.chat_template=openchat-3.5")


def test_a_drawn_number_of_rows_is_what_is_planned(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    whole = count_examples(tmp_path / "a.json")
    assert whole.at_most(10).num_rows == 10 and whole.at_most(10).num_tokens == pytest.approx(whole.num_tokens / 4)
    assert whole.at_most(None) == whole.at_most(400) == whole
