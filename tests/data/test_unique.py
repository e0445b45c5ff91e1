"""The first row of each value stays, in a file of any form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.unique import excluded_path, keep_unique
from tunesmith.errors import DataError
from tunesmith.text.jsonl import read_records
from tunesmith.types import Excluded


def test_every_row_is_kept_or_excluded_with_its_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "n": 1}\n\n{"q": "y"}\n{"q": "x", "n": 2}\nnot json\n{"p": 1}')
    counts = keep_unique(path, "q", tmp_path / "out/kept.jsonl")
    assert counts == {"rows_in": 5, "kept": 2, "excluded_exact": 1, "excluded_bad_row": 2}
    assert (tmp_path / "out/kept.jsonl").read_text() == '{"q": "x", "n": 1}\n{"q": "y"}\n'
    excluded = read_records(excluded_path(tmp_path / "out/kept.jsonl"), Excluded)
    assert [(each.where, each.detail) for each in excluded] == [
        ("a.jsonl:4", "the q of a.jsonl:1"),
        ("a.jsonl:5", "the line is no JSON object"),
        ("a.jsonl:6", "the row has no field 'q'"),
    ]


def test_a_field_that_no_row_has_leaves_no_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x"}\n{"q": "y"}\n')
    with pytest.raises(DataError, match=r"none of 2 rows has the field 'z'"):
        keep_unique(path, "z", tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_laminis_own_filter_removes_1735_of_its_5838_rows(tmp_path: Path, shared_data: Path):
    counts = keep_unique(shared_data / "lamini/lamini_dataset.jsonl", "question", tmp_path / "kept.jsonl")
    assert counts == {"rows_in": 5838, "kept": 4103, "excluded_exact": 1735}
    assert len((tmp_path / "kept.jsonl").read_bytes().splitlines()) == 4103
