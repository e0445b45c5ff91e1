"""The same rows come out of every container, streamed, with the place each was found."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.readers import containers, read_examples, source
from tunesmith.data.readers.containers import Row, cut_raw
from tunesmith.data.readers.source import data_file
from tunesmith.errors import DataError, MissingExtra
from tunesmith.types import Conversation, Excluded

COLUMNS = ("question", "answer")


def read_rows(path: Path) -> Iterator[Row | Excluded]:
    return containers.read_rows(data_file(path), COLUMNS)


ROWS = [{"question": f"What is {n}, and why? 狗🚲", "answer": f'It is "{n}";\nno more'} for n in range(5)]


def as_csv(delimiter: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    header = delimiter.join(["", "Question ", "ANSWER"])
    return "\n".join(
        [header, *[delimiter.join([str(n), cell(r["question"]), cell(r["answer"])]) for n, r in enumerate(ROWS)]]
    )


CONTENTS = {
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines_with_blanks_and_no_last_newline.jsonl": "\n".join(json.dumps(row) + "\n" for row in ROWS).rstrip(),
    "lines_in_spite_of_the_name.json": "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS),
    "list.json": json.dumps(ROWS, indent=2),
    "list_in_spite_of_the_name.jsonl": json.dumps(ROWS),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "comma.csv": as_csv(","),
    "tab.tsv": as_csv("\t"),
    "semicolon.csv": as_csv(";"),
    "bar.txt": as_csv("|"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_container_gives_the_same_examples(tmp_path: Path, name: str, mark: str, packed: bool):
    data = (mark + CONTENTS[name]).encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    examples = list(read_examples(path))
    assert [example.messages[0].content for example in examples if isinstance(example, Conversation)] == [
        row["question"] for row in ROWS
    ]
    assert [example.reply for example in examples if isinstance(example, Conversation)] == [
        row["answer"] for row in ROWS
    ]


def test_parquet_gives_the_same_examples(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "__index_level_0__": 1, "when": None} for row in ROWS]), path)
    examples = list(read_examples(path))
    assert [example.reply for example in examples if isinstance(example, Conversation)] == [
        row["answer"] for row in ROWS
    ]
    assert isinstance(examples[2], Conversation) and examples[2].source == "rows.parquet#3"
    assert examples[2].metadata == {}


def test_nested_parquet_and_csv_cells_that_hold_json_are_read_as_conversations(tmp_path: Path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    pq.write_table(pa.Table.from_pylist([{"conversations": turns}]), tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text('conversations\n"' + json.dumps(turns).replace('"', '""') + '"\n')
    for name in ("c.parquet", "c.csv"):
        (example,) = read_examples(tmp_path / name)
        assert isinstance(example, Conversation) and example.reply == "b"


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra) as caught:
        list(read_examples(path))
    assert "pip install 'tunesmith[data]'" in str(caught.value.hint)


def test_places_are_lines_in_text_and_numbers_in_lists(tmp_path: Path):
    places = {}
    for name, content in CONTENTS.items():
        (tmp_path / name).write_text(content, newline="")
        places[name] = [row.where for row in read_rows(tmp_path / name)]
    assert places["lines.jsonl"] == [f"lines.jsonl:{n}" for n in range(1, 6)]
    assert places["lines_with_blanks_and_no_last_newline.jsonl"][-1].endswith(":9")
    assert places["list.json"] == [f"list.json#{n}" for n in range(1, 6)]
    assert places["comma.csv"] == [f"comma.csv:{n}" for n in (2, 4, 6, 8, 10)]  # each answer has a line break


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_a_list_is_read_right_wherever_the_blocks_cut_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(source, "_BLOCK_BYTES", block)
    values = [*ROWS, {"n": 12345}, {"s": "狗" * 9}]
    (tmp_path / "a.json").write_bytes(("\ufeff " + json.dumps(values, ensure_ascii=False) + " \n").encode())
    assert [row.value for row in read_rows(tmp_path / "a.json") if isinstance(row, Row)] == values


def test_a_big_list_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "_BLOCK_BYTES", 1 << 12)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"question": "q" * 100, "answer": str(n)} for n in range(5000)]))
    longest = 0
    real = containers._JsonStream._read

    def watched(stream: containers._JsonStream) -> None:
        nonlocal longest
        real(stream)
        longest = max(longest, len(stream._text))

    monkeypatch.setattr(containers._JsonStream, "_read", watched)
    assert sum(1 for _ in read_rows(path)) == 5000
    assert longest < 3 * (1 << 12) < path.stat().st_size


def test_objects_over_several_lines_may_hold_objects_on_one_line(tmp_path: Path):
    task = '{\n"instruction": "i",\n"instances": [\n{"input": "", "output": "o"}\n]\n}\n'
    (tmp_path / "a.json").write_text(task * 3)
    examples = list(read_examples(tmp_path / "a.json"))
    assert [example.source for example in examples if isinstance(example, Conversation)] == [
        "a.json#1",
        "a.json#2",
        "a.json#3",
    ]


def test_a_bad_first_line_does_not_change_how_lines_are_read(tmp_path: Path):
    for bad in ("{'question': 'q'}", '{"question": "q", "answ', "{"):
        (tmp_path / "a.jsonl").write_text(bad + "\n" + CONTENTS["lines.jsonl"])
        first, *rest = read_examples(tmp_path / "a.jsonl")
        assert isinstance(first, Excluded) and first.reason == "invalid_json"
        assert len(rest) == 5 and all(isinstance(example, Conversation) for example in rest)


def test_a_folder_is_read_file_by_file_and_says_what_it_passed_over(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.jsonl").write_text(CONTENTS["lines.jsonl"])
    (tmp_path / "sub/a.csv").write_text(CONTENTS["comma.csv"])
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(CONTENTS["list.json"].encode()))
    (tmp_path / "README.md").write_text("# about")
    examples = list(read_examples(tmp_path))
    skipped = [example for example in examples if isinstance(example, Excluded)]
    assert len(examples) == 16
    assert [(each.reason, each.where) for each in skipped] == [("no_data_file", "README.md")]


EMPTY = {
    "a.jsonl": b"",
    "b.csv": b" \n",
    "c.json": b"[]",
    "d.csv": b"question,answer\n",
    "e.jsonl.gz": gzip.compress(b""),
}


def test_empty_files_of_a_folder_are_told_and_do_not_stop_the_others(tmp_path: Path):
    for name, content in EMPTY.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "f.parquet")
    (tmp_path / "rows.jsonl").write_text(CONTENTS["lines.jsonl"])
    examples = list(read_examples(tmp_path))
    told = [(each.where, each.reason) for each in examples if isinstance(each, Excluded)]
    assert told == [(name, "empty_file") for name in [*EMPTY, "f.parquet"]]
    assert sum(isinstance(each, Conversation) for each in examples) == 5


@pytest.mark.parametrize("name", EMPTY)
def test_the_only_data_file_of_a_folder_must_hold_something(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(EMPTY[name])
    (tmp_path / "README.md").write_text("# about")
    with pytest.raises(DataError, match=r"empty|no row"):
        list(read_examples(tmp_path))


def test_a_damaged_file_of_a_folder_is_an_error_that_names_it(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"^b\.parquet: the parquet file is damaged: its end is missing"):
        list(read_examples(tmp_path))


def test_a_folder_without_data_is_an_error(tmp_path: Path):
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match=r"there is no data file; it has: notes\.doc"):
        list(read_examples(tmp_path))


def test_raw_rows_are_cut_and_can_always_be_written():
    assert cut_raw({"a": 1}) == {"a": 1}
    assert cut_raw({"a": "x" * 3000}) == '{"a": "' + "x" * 1993
    assert cut_raw({"a": "\ud800"}) == "{'a': '\\ud800'}"
    assert cut_raw(float("nan")) == "nan"


def test_a_line_separator_within_a_string_ends_no_line(tmp_path: Path):
    row = {"question": "One\u2028two\u0085three", "answer": "Yes."}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(row, ensure_ascii=False), "{broken", json.dumps(row)]), encoding="utf-8")
    rows = list(read_rows(path))
    assert [each.where for each in rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert [each.value for each in rows if isinstance(each, Row)] == [row, row]


def test_long_rows_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(containers, "_CHARACTERS_PER_BATCH", 1000)
    rows = [{"question": "q", "answer": ["a" * 400]}] * 9
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    batches = list(containers.read_batches(data_file(path), COLUMNS))
    assert [len(list(batch.rows())) for batch in batches] == [3, 3, 3]
