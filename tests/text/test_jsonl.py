"""JSON lines: same bytes for same records, whole or not at all, and errors that name line and field."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError, StoreError
from tunesmith.text import jsonl
from tunesmith.text.jsonl import RecordLog, append_record, iter_records, read_log, read_records, write_records
from tunesmith.types import Completion, Conversation, Excluded, Message, Sample, Score

ROWS = [
    Conversation(
        messages=[Message(role="user", content="Où est mon vélo ?\u2028"), Message(role="assistant", content="ici 🚲")]
    ),
    Conversation(
        messages=[Message(role="user", content="b")], source="a.jsonl:2", metadata={"score": None, "big": 2**70}
    ),
]


def test_records_come_back_as_they_were_written_and_the_bytes_are_the_same_each_time(tmp_path: Path):
    assert write_records(tmp_path / "a.jsonl", ROWS) == 2
    assert write_records(tmp_path / "b.jsonl", iter(ROWS)) == 2
    assert read_records(tmp_path / "a.jsonl", Conversation) == ROWS
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert "vélo".encode() in (tmp_path / "a.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_a_none_that_means_something_survives_and_a_default_none_takes_no_room(tmp_path: Path):
    sample = Sample(id="x", messages=[Message(role="user", content="q")], reference="r")
    sample.completions["base"] = Completion(text="t")
    sample.scores["base"] = {"rouge_l": Score(value=None, explanation="no text")}
    write_records(tmp_path / "s.jsonl", [sample, Excluded(reason="bad_row")])
    line = (tmp_path / "s.jsonl").read_bytes().splitlines()[0]
    assert b'"value":null' in line
    assert b"reasoning" not in line
    assert Sample.model_validate_json(line) == sample


def test_a_null_inside_a_raw_row_is_kept(tmp_path: Path):
    write_records(tmp_path / "x.jsonl", [Excluded(reason="bad_row", raw={"output": None})])
    assert read_records(tmp_path / "x.jsonl", Excluded)[0].raw == {"output": None}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"messages": [{"role": "usr", "content": "x"}]}',
            "a.jsonl:2: this line is no Conversation: field 'messages.0.role'",
        ),
        (b'{"message": []}', "field 'messages': Field required"),
        (b'{"messages": []', "Invalid JSON"),
        (b'{"messages": [], "sorce": "a"}', "field 'sorce': Extra inputs are not permitted"),
        (b"\xff\xfe", "a.jsonl:2"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, line: bytes, expected: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"messages": []}\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_records(tmp_path / "a.jsonl", Conversation)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("a.jsonl:2: ")


def test_a_missing_file_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"nope\.jsonl: cannot be read: No such file"):
        read_records(tmp_path / "nope.jsonl", Conversation)


def test_records_can_be_read_one_by_one(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"messages": []}\n\nbroken\n')
    records = iter_records(tmp_path / "a.jsonl", Conversation)
    assert next(records).messages == []
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        next(records)


def test_nan_is_refused_rather_than_turned_into_nothing(tmp_path: Path):
    with pytest.raises(DataError, match="Score holds a value that cannot be written as JSON"):
        write_records(tmp_path / "s.jsonl", [Score(value=float("nan"))])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_of_rows_leaves_the_old_file(tmp_path: Path):
    write_records(tmp_path / "a.jsonl", ROWS)
    before = (tmp_path / "a.jsonl").read_bytes()

    def rows():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "a.jsonl", rows())
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_names_path_and_bytes_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_records(tmp_path / "a.jsonl", ROWS[:1])
    before = (tmp_path / "a.jsonl").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jsonl.os, "fsync", full)
    with pytest.raises(StoreError) as caught:
        write_records(tmp_path / "a.jsonl", ROWS)
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}: no room to write ")
    assert caught.value.hint is not None and "free some space" in caught.value.hint
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_write_to_a_device_that_is_really_full_is_a_store_error(tmp_path: Path):
    (tmp_path / ".a.jsonl.tmp").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"a\.jsonl: no room to write \d+ bytes"):
        write_records(tmp_path / "a.jsonl", ROWS)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_torn_last_line_is_left_out_and_cut_off_before_the_next_append(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    append_record(path, ROWS[0])
    append_record(path, ROWS[1])
    whole = path.read_bytes()
    for cut in range(1, len(jsonl.dump_record(ROWS[1])) + 1):
        path.write_bytes(whole[:-cut])
        assert read_log(path, Conversation) == ROWS[:1]
        with RecordLog(path) as log:
            log.append(ROWS[1])
        assert path.read_bytes() == whole


def test_a_torn_line_longer_than_a_block_is_cut_off_too(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    append_record(path, ROWS[0])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * 200_000)
    append_record(path, ROWS[1])
    assert read_log(path, Conversation) == ROWS
    path.write_bytes(b"y" * 200_000)
    append_record(path, ROWS[0])
    assert path.read_bytes() == whole


def test_a_log_that_does_not_exist_is_empty_and_a_damaged_one_names_its_line(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    assert read_log(path, Conversation) == []
    path.write_bytes(b"damaged\n")
    append_record(path, ROWS[0])
    with pytest.raises(DataError, match=r"answers\.jsonl:1"):
        read_log(path, Conversation)


def test_an_append_that_fails_half_way_leaves_the_log_whole(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    log = RecordLog(path)
    log.append(ROWS[0])
    real = log._stream

    class Half(io.RawIOBase):
        calls = 0

        def write(self, data: Any) -> int:
            Half.calls += 1
            if Half.calls == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real.write(bytes(data)[: len(data) // 2]) or 0

        def truncate(self, size: int | None = None) -> int:
            return real.truncate(size)

    log._stream = Half()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreError, match="no room to write"):
        log.append(ROWS[1])
    log._stream = real
    log.append(ROWS[1])
    log.sync()
    log.close()
    assert read_log(path, Conversation) == ROWS
