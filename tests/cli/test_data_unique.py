"""`tunesmith data unique`: Lamini's filter as one command, with every row counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import RecipeError


def unique(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", "unique", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def test_the_first_row_of_each_question_stays_and_the_others_lie_beside_it(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question": "x", "n": 1}\n{"question": "x", "n": 2}\n{"q": 1}\n')
    shown = unique(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert "3 rows: 1 kept, 2 removed" in shown
    assert "1 repeat an earlier question, 1 have no question" in shown
    assert (tmp_path / "b.jsonl").read_text() == '{"question": "x", "n": 1}\n'
    removed = [json.loads(line) for line in (tmp_path / "b.jsonl.excluded.jsonl").read_text().splitlines()]
    assert [(row["reason"], row["where"]) for row in removed] == [("exact", "a.jsonl:2"), ("bad_row", "a.jsonl:3")]


def test_another_field_can_be_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"q": "x"}\n{"q": "x"}\n{"q": "y"}\n')
    assert "2 kept, 1 removed" in unique(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--field", "q")


def test_no_file_is_overwritten_unasked_and_none_by_itself(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "x"}\n')
    (tmp_path / "b.jsonl").write_text("mine")
    with pytest.raises(RecipeError, match="there already"):
        unique(str(path), str(tmp_path / "b.jsonl"))
    with pytest.raises(RecipeError, match="there already"):
        unique(str(path), str(path), "--force")
    with pytest.raises(RecipeError, match="no such file"):
        unique(str(tmp_path / "nope"), str(tmp_path / "c.jsonl"))
    assert (tmp_path / "b.jsonl").read_text() == "mine" and path.read_text() == '{"question": "x"}\n'


def test_laminis_own_filter_removes_1735_of_its_5838_rows(tmp_path: Path, shared_data: Path):
    shown = unique(str(shared_data / "lamini/lamini_dataset.jsonl"), str(tmp_path / "filtered.jsonl"))
    assert "5,838 rows: 4,103 kept, 1,735 removed" in shown
    assert "1,735 repeat an earlier question" in shown
