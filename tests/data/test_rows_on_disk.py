"""Rows on disk: the lines that were meant, in their order, a bounded piece at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunesmith.data import rows as rows_module
from tunesmith.data.rows import RowFile, Rows, RowWriter, all_rows
from tunesmith.errors import DataError, StoreError
from tunesmith.text.jsonl import dump_record
from tunesmith.types import Conversation, Message
from tunesmith.workers.local import ThisProcess

POOL = ThisProcess()


def conversation(text: str) -> Conversation:
    return Conversation(messages=[Message(role="user", content=text), Message(role="assistant", content="Yes.")])


def written(path: Path, texts: list[str]) -> RowFile:
    with RowWriter(path) as writer:
        for text in texts:
            writer.write(dump_record(conversation(text)))
        return writer.close()


def texts(rows: Rows) -> list[str]:
    return [row.messages[0].content for row in rows]


def test_a_file_that_was_written_is_the_file_that_is_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 100)
    wanted = ["a", "line\u2028separator\u0085 \x0b \r and \r\n", "", "b" * 999]
    file = written(tmp_path / "rows.jsonl", wanted)
    assert texts(all_rows(file, POOL)) == texts(all_rows(RowFile.scan(tmp_path / "rows.jsonl"), POOL)) == wanted
    whole = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "torn.jsonl").write_bytes(whole.removesuffix(b"\n").replace(b"\n", b"\r\n"))
    assert texts(all_rows(RowFile.scan(tmp_path / "torn.jsonl"), POOL)) == wanted


def test_a_file_of_no_rows_has_none(tmp_path: Path):
    file = written(tmp_path / "rows.jsonl", [])
    assert len(file) == len(RowFile.scan(tmp_path / "rows.jsonl")) == 0
    assert list(all_rows(file, POOL)) == list(all_rows(file, POOL).spans()) == []


@pytest.mark.parametrize("numbers", [[3, 1, 2, 29, 0], [5, 5], list(range(0, 30, 7)), list(range(29, -1, -1))])
@pytest.mark.parametrize("rows_per_span", [1, 4, 1000])
def test_rows_come_in_the_order_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int], rows_per_span: int
):
    monkeypatch.setattr(rows_module, "ROWS_PER_SPAN", rows_per_span)
    rows = all_rows(written(tmp_path / "rows.jsonl", [str(n) for n in range(30)]), POOL).chosen(np.array(numbers))
    assert texts(rows) == [str(n) for n in numbers] == list(rows.map(lambda row: row.messages[0].content))
    assert sum(span.num_rows for span in rows.spans()) == len(numbers)
    assert [rows[place].messages[0].content for place in range(len(rows))] == texts(rows)


def test_a_piece_holds_no_more_bytes_than_a_worker_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "BYTES_PER_SPAN", 1000)
    wanted = ["x" * 300] * 5 + ["y" * 5000] + ["z"] * 5
    rows = all_rows(written(tmp_path / "rows.jsonl", wanted), POOL)
    spans = list(rows.spans())
    assert all(span.size_bytes <= 1000 or span.num_rows == 1 for span in spans)
    assert [span.num_rows for span in spans if span.size_bytes > 1000] == [1]
    assert len(spans) < len(wanted)
    assert texts(rows) == wanted


def test_a_damaged_line_is_an_error_that_says_about_where(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_bytes(dump_record(conversation("a")) + b"{broken\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, from line 1 on"):
        list(all_rows(RowFile.scan(tmp_path / "rows.jsonl"), POOL))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("size_bytes", [10, 1 << 20])
def test_a_full_disk_is_said_in_words(size_bytes: int):
    with pytest.raises(StoreError, match="no room to write"), RowWriter(Path("/dev/full")) as writer:
        writer.write(b"x" * size_bytes)
