"""`tunesmith data convert`: counts on the screen, files on disk, errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import DataError, RecipeError

ROWS = [{"instruction": f"i{n}", "input": "", "output": "o"} for n in range(5)]


def convert(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", "convert", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def test_a_file_is_converted_and_every_row_is_counted(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([*ROWS, {"instruction": "", "output": "o"}]))
    shown = convert(str(tmp_path / "a.json"), str(tmp_path / "b.jsonl"), "--to", "sharegpt")
    assert "6 rows: 5 written, 1 excluded" in shown
    assert "empty_prompt 1" in shown and "b.jsonl.excluded.jsonl" in shown
    first = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert first["conversations"] == [{"from": "human", "value": "i0"}, {"from": "gpt", "value": "o"}]


def test_a_sample_is_drawn_and_the_rest_is_counted(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    shown = convert(f"{tmp_path / 'a.json'}#2", str(tmp_path / "b.csv"), "--to", "csv")
    assert "5 rows: 2 written, 0 excluded, 3 not drawn" in shown
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 3


def test_what_is_lost_is_named(tmp_path: Path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "r"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    assert "not held by alpaca: reasoning 1" in convert(
        str(tmp_path / "a.jsonl"), str(tmp_path / "b"), "--to", "alpaca"
    )


def test_a_file_is_not_overwritten_unasked_and_never_by_itself(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "b").write_text("mine")
    with pytest.raises(RecipeError, match="there already"):
        convert(str(tmp_path / "a.json"), str(tmp_path / "b"), "--to", "csv")
    assert (tmp_path / "b").read_text() == "mine"
    with pytest.raises(RecipeError, match="there already"):
        convert(str(tmp_path / "a.json"), str(tmp_path / "a.json"), "--to", "csv", "--force")
    convert(str(tmp_path / "a.json"), str(tmp_path / "b"), "--to", "csv", "--force")
    assert (tmp_path / "b").read_text().startswith("instruction,input,output")


def test_a_missing_file_and_an_unknown_form_are_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"nope: there is no such file"):
        convert("nope", str(tmp_path / "b"), "--to", "csv")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(RecipeError, match="no form to write named 'cvs'"):
        convert(str(tmp_path / "a.json"), str(tmp_path / "b"), "--to", "cvs")


def test_the_ending_of_the_file_to_write_is_what_is_written_or_it_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert "5 written" in convert(str(tmp_path / "a.json"), str(tmp_path / "b.parquet"), "--to", "alpaca")
    assert (tmp_path / "b.parquet").read_bytes()[:4] == b"PAR1"
    assert "5 written" in convert(str(tmp_path / "b.parquet"), str(tmp_path / "c.csv"), "--to", "alpaca")
    assert (tmp_path / "c.csv").read_text().startswith("instruction,input,output")
    with pytest.raises(RecipeError, match=r"d\.csv: the file is called \.csv, and sharegpt is not written so"):
        convert(str(tmp_path / "c.csv"), str(tmp_path / "d.csv"), "--to", "sharegpt")
    assert not (tmp_path / "d.csv").exists()


def test_rows_that_could_be_two_examples_are_converted_once_their_form_is_named(tmp_path: Path):
    row = {"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="two ways") as caught:
        convert(str(tmp_path / "a.json"), str(tmp_path / "b.jsonl"), "--to", "messages")
    assert "`--from question_response`" in (caught.value.hint or "") and not (tmp_path / "b.jsonl").exists()
    convert(str(tmp_path / "a.json"), str(tmp_path / "b.jsonl"), "--to", "messages", "--from", "question_response")
    written = json.loads((tmp_path / "b.jsonl").read_text())
    assert [turn["content"] for turn in written["messages"]] == ["p", "c"]
