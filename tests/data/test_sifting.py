"""Every row that goes in goes on or is excluded with its reason, whatever a filter does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tunesmith.data import rows as rows_module
from tunesmith.data.filters.parts import with_messages
from tunesmith.data.rows import RowFile
from tunesmith.data.sifting import Sifting, Step
from tunesmith.errors import StoreError
from tunesmith.events import NullSink
from tunesmith.protocols import Verdict
from tunesmith.recipe import Curate
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Message, Split, Task
from tunesmith.workers.local import ThisProcess


class ThirdRowsGo:
    """Every third row goes, every fourth of all is said in capitals."""

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        for place, row in enumerate(rows):
            if place % 3 == 2:
                yield "third", f"{row.place} is a third one"
            elif place % 4 == 0:
                louder = [m.model_copy(update={"content": m.content.upper()}) for m in row.messages]
                yield with_messages(row, louder)
            else:
                yield None


class Forgetful:
    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        return [None] * (len(rows) - 1)


class Full:
    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        raise StoreError("no room")


def rows_in(path: Path, texts: Sequence[str], split: Split | None = None) -> RowFile:
    rows = [
        Conversation(
            messages=[Message(role="user", content=f"ask {text}"), Message(role="assistant", content=text)],
            split=split,
            source=text,
        )
        for text in texts
    ]
    write_records(path, rows)
    return RowFile.scan(path)


def sifting(folder: Path) -> Sifting:
    return Sifting(folder, Curate(), Task(), ThisProcess(), NullSink())


@pytest.mark.parametrize("rows_per_span", [1, 3, 1000])
def test_rows_stay_in_order_and_counts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_span: int):
    monkeypatch.setattr(rows_module, "ROWS_PER_SPAN", rows_per_span)
    sources = [rows_in(tmp_path / "a.jsonl", "abcdef"), rows_in(tmp_path / "t.jsonl", "xy", "test")]
    steps: list[Step] = ["no_reply", ThirdRowsGo(), "length"]
    with sifting(tmp_path / "out") as work:
        table = work.read(sources, steps, "check")
        assert [row.messages[-1].content for row in table.rows] == ["X", "y", "b", "C", "e", "f"]
        work.write(table, tmp_path / "out" / "train.jsonl", "train")
    assert work.reasons == {"third": 2}
    assert work.num_rewritten == 2
    excluded = [json.loads(line) for line in (tmp_path / "out" / "excluded.jsonl").read_text().splitlines()]
    assert [each["where"] for each in excluded] == ["a", "d"]
    written = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["split"] for row in written] == ["test", "test", "train", "train", "train", "train"]
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"train.jsonl", "excluded.jsonl"}


def test_a_filter_that_says_nothing_of_a_row_is_a_fault_and_loses_none(tmp_path: Path):
    source = rows_in(tmp_path / "a.jsonl", "abc")
    with pytest.raises(ValueError, match="shorter"), sifting(tmp_path / "out") as work:
        work.read([source], [Forgetful()], "check")


def test_an_error_within_is_the_one_that_is_told_and_scratch_files_go(tmp_path: Path):
    source = rows_in(tmp_path / "a.jsonl", "abc")
    with pytest.raises(StoreError, match="no room"), sifting(tmp_path / "out") as work:
        work.read([source], [Full()], "check")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["excluded.jsonl"]
