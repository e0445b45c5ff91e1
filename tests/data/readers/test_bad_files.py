"""What a person sees for each kind of bad data file, and for each kind of bad row. Nothing is lost, nothing crashes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.readers import read_examples
from tunesmith.errors import DataError
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded

GOOD = {"question": "q", "answer": "a"}
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.Table.from_pylist([GOOD]), PARQUET)


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


FILES: list[tuple[str, str, bytes, str, str]] = [
    # what it is, name, content, message, hint
    ("an empty file", "a.jsonl", b"", "a.jsonl: the file is empty, expected at least one row", "name another file"),
    ("only white space", "a.csv", b"\xef\xbb\xbf \n\n", "a.csv: the file is empty", ""),
    ("an empty list", "a.json", b" [ ] ", "a.json: the list is empty", ""),
    ("a header without rows", "a.csv", b"question,answer\n", "a.csv: the file has a header but no row", "at least one"),
    ("an unknown form", "a.jsonl", lines({"title": "x", "body": "y"}), "a.jsonl:1: no known form of example has the fields: title, body", "known forms: instruction, input (optional), output; "),
    ("a misspelt field", "a.jsonl", lines({"qestion": "q", "anwser": "a"}), "fields: qestion, anwser", "did you mean 'question' for 'qestion'? Nearest form: question and answer"),
    ("rows under a name", "a.json", b'{"data": [{"question": "q"}]}', "has the fields: data", "'data' holds a list of rows: save that list alone"),
    ("a list of numbers", "a.json", b"[1000, 2048]", "a.json#1: the rows are a number each, expected objects", "known forms"),
    ("two shapes at once", "a.jsonl", lines({"instruction": "i", "output": "o", "messages": [{"role": "user", "content": "m"}]}), "a.jsonl:1: the rows can be read in two ways (alpaca and openai_messages): as instruction -> output: instruction = 'i', output = 'o'; or as messages: messages = ", "remove or rename"),
    ("two columns of answers", "a.csv", b"question,answer,response\nq,a,r\n", "a.csv:2: the rows can be read in two ways (question_response): as question -> answer: question = 'q', answer = 'a'; or as question -> response: question = 'q', response = 'r'", ""),
    ("half one shape, half another", "a.jsonl", lines(GOOD, {"instruction": "i", "output": "o"}), "a.jsonl:1: the rows can be read in two ways (question_response and alpaca)", "split the file"),
    ("Latin-1 text", "a.jsonl", lines(GOOD) + '{"question": "où", "answer": "là"}'.encode("latin-1"), "a.jsonl: not UTF-8: byte 0xf9 at offset 48", "it could be cp1252: iconv -f cp1252 -t utf-8"),
    ("Chinese in GB18030", "a.csv", "question,answer\n你好,再见\n".encode("gb18030"), "a.csv: not UTF-8: byte 0xc4 at offset 16", "it could be gb18030"),
    ("GB18030 in a list", "a.json", json.dumps([{"question": "自行车", "answer": "坏了"}], ensure_ascii=False).encode("gb18030"), "a.json: not UTF-8: byte 0xd7 at offset 15", "it could be gb18030"),
    ("UTF-16 text", "a.csv", "question,answer\n".encode("utf-16"), "a.csv: this is UTF-16 text", "iconv -f utf-16"),
    ("an Excel workbook", "a.xlsx", b"PK\x03\x04rest", "a.xlsx: this is a zip archive or an Excel workbook", "save the sheet as CSV"),
    ("binary data", "a.jsonl", b"\x01\x00\x02", "a.jsonl: this is binary data", ""),
    ("prose", "a.dat", b"# Notes\n\nSome text\n", "a.dat: this is no list of rows: it starts with '# Notes", "expected a JSON list"),
    ("a damaged gzip", "a.jsonl.gz", gzip.compress(lines(*[GOOD] * 9))[:-9], "a.jsonl.gz: the gzip file is damaged", "fetch or make it again"),
    ("a damaged parquet", "a.parquet", PARQUET.getvalue().to_pybytes()[:-20], "a.parquet: the parquet file is damaged", "fetch or make it again"),
    ("a parquet cut short", "a.parquet", PARQUET.getvalue().to_pybytes()[:-20], "a.parquet: the parquet file is damaged: its end is missing", "fetch or make it again"),
    ("rows called parquet", "a.parquet", lines(GOOD), "a.parquet: the file is called .parquet, but its content is not: it starts with '{\"question", "give it the ending of what it holds: .jsonl"),
    ("bytes called parquet", "a.parquet", b"\x00\x01" * 9, "a.parquet: this is binary data, expected rows", "fetch or make it again"),
    ("an error page called parquet", "a.parquet", b"<!doctype html><p>404", "a.parquet: the file is called .parquet, but", "fetch"),
    ("a pointer of Git LFS", "a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.parquet: this is a pointer of Git LFS, not the file itself", "git lfs pull"),
    ("a list cut short", "a.json", b'[\n{"question": "q", "answer": "a"},\n{"question": "q', "a.json:3: row 2 of the list is not valid JSON: the file ends in the middle of it (an interrupted write?)", "repair the file"),
    ("a list without its end", "a.json", b'[{"question": "q", "answer": "a"}\n', "a.json:2: a comma or the end of the list is missing after row 1", ""),
    ("a bad row in a list", "a.json", b'[{"question": "q", "answer": "a"},\n{"question": nope}]', "a.json:2: row 2 of the list is not valid JSON: Expecting value at column", "one JSON object per line"),
    ("text after the list", "a.json", b'[{"question": "q", "answer": "a"}] []', "a.json:1: there is more text after the end of the list of 1 rows", ""),
    ("a quote that never closes", "a.csv", b'question,answer\nq,a\nq2,"a2\nq3,a3\n', "a.csv:3: a quote opened in this row never closes", 'twice: ""'),
    ("two columns of one name", "a.csv", b"question,answer,Answer\nq,a,b\n", "a.csv:1: two columns are named 'answer'", "rename"),
    ("no row that is JSON", "a.jsonl", b"{'question': 'q'}\n{'question': 'q'}\n", "a.json", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, message: str, hint: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_examples(tmp_path / name))
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nope\.jsonl: cannot be read: No such file or directory"):
        list(read_examples(tmp_path / "nope.jsonl"))


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ALPACA = {"instruction": "i", "output": "o"}
CHAT = chat(("user", "u"), ("assistant", "a"))
ROWS: list[tuple[str, Any, Any, str, str | None, str]] = [
    # what it is, a good row of the file, the bad row, reason, field, detail
    ("a torn line", GOOD, b'{"question": "q", "ans\n', "invalid_json", None, "not valid JSON: Unterminated string"),
    ("Python's quotes", GOOD, b"{'question': 'q'}\n", "invalid_json", None, "Expecting property name"),
    ("NaN", GOOD, b'{"question": "q", "answer": NaN}\n', "invalid_json", None, "NaN is no JSON value"),
    ("nested without end", GOOD, b'{"question": ' + b"[" * 100_000 + b"\n", "invalid_json", None, "nested too deeply"),
    ("a list for a row", GOOD, ["q", "a"], "wrong_type", None, "the row is a list, expected an object with question and answer"),
    ("no answer", GOOD, {"question": "q"}, "missing_field", "answer", "the row has no field 'answer'; it has: question"),
    ("an empty answer", GOOD, {"question": "q", "answer": " \n"}, "empty_reply", "answer", "field 'answer' is empty, expected text"),
    ("null for an answer", GOOD, {"question": "q", "answer": None}, "empty_reply", "answer", "is empty"),
    ("an empty question", GOOD, {"question": "", "answer": "a"}, "empty_prompt", "question", "field 'question' is empty"),
    ("a number for an answer", GOOD, {"question": "q", "answer": 4}, "wrong_type", "answer", "field 'answer' is a number, expected text"),
    ("an object for an answer", GOOD, {"question": "q", "answer": {"a": 1}}, "wrong_type", "answer", "is an object, expected text; write it as JSON text"),
    ("an unknown split", GOOD, {**GOOD, "split": "tset"}, "bad_value", "split", "field 'split' is 'tset', expected train, test or validation"),
    ("a list for metadata", GOOD, {**GOOD, "metadata": [1]}, "wrong_type", "metadata", "expected an object"),
    ("a list for an origin", GOOD, {**GOOD, "origin": [1]}, "wrong_type", "origin", "expected text or a number"),
    ("half a surrogate pair", GOOD, b'{"question": "\\ud83d", "answer": "a"}\n', "wrong_type", None, "cannot be written as JSON: 'utf-8' codec can't encode character '\\ud83d'"),
    ("no instruction", ALPACA, {"input": "i", "output": "o"}, "missing_field", "instruction", "the row has: input, output"),
    ("a broken history", ALPACA, {**ALPACA, "history": [["only one"]]}, "wrong_type", "history[1]", "must be a pair of texts"),
    ("an unknown role", CHAT, chat(("usr", "u"), ("assistant", "a")), "bad_turns", "turn 1", "unknown role 'usr'; did you mean 'user'?"),
    ("no role", CHAT, {"messages": [{"content": "u"}]}, "missing_field", "turn 1", "has no role ('from' or 'role'); it has: content"),
    ("no text", CHAT, {"messages": [{"role": "user"}]}, "missing_field", "turn 1", "the text of turn 1 is missing"),
    ("an image", CHAT, chat(("user", [{"type": "image_url", "image_url": {}}])), "wrong_type", "turn 1", "a part of type 'image_url'"),
    ("two users in a row", CHAT, chat(("user", "u"), ("user", "v"), ("assistant", "a")), "bad_turns", "turn 2", "is the user's right after a turn of the user"),
    ("two answers in a row", CHAT, chat(("user", "u"), ("assistant", "a"), ("assistant", "b")), "bad_turns", "turn 3", "two turns of the assistant"),
    ("the assistant first", CHAT, chat(("assistant", "a"), ("user", "u")), "bad_turns", "turn 1", "no user spoke yet"),
    ("a late system message", CHAT, chat(("user", "u"), ("system", "s")), "bad_turns", "turn 2", "can only come first"),
    ("a result without a call", CHAT, chat(("user", "u"), ("tool", "t")), "bad_turns", "turn 2", "no tool was called"),
    ("a call's result at the end", CHAT, {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [{}]}, {"role": "tool", "content": "t"}]}, "bad_turns", "turn 3", "ends in a tool's result"),
    ("an empty turn", CHAT, chat(("user", "u"), ("assistant", "")), "empty_reply", "turn 2", "turn 2 (assistant) is empty"),
    ("a system message alone", CHAT, chat(("system", "s")), "empty_prompt", None, "no turn is the user's"),
    ("no turns", CHAT, {"messages": []}, "empty_prompt", "messages", "is an empty list"),
    ("text for turns", CHAT, {"messages": "hello"}, "wrong_type", "messages", "is text that is no JSON list"),
    ("half a weight", CHAT, {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0.5}]}, "bad_value", "turn 2", "turn 2 has weight 0.5; a turn is learnt whole (1, true) or not at all (0, false)"),
    ("a weight in words", CHAT, {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "train": "no"}]}, "bad_value", "turn 2", "turn 2 has train 'no'"),
    ("two weights", CHAT, {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "weight": 0, "train": True}]}, "bad_value", "turn 2", "turn 2 has weight 0 and train True, which contradict each other"),
    ("weights of characters", CHAT, {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}]}, "bad_value", "turn 2", "has parts that are not to be learnt"),
    ("a question to be learnt", CHAT, {"messages": [{"role": "user", "content": "u", "weight": 1}, {"role": "assistant", "content": "a"}]}, "bad_value", "turn 1", "turn 1 has weight 1, and a turn of the user is never learnt"),
    ("instances that are text", {"instruction": "i", "instances": [{"input": "", "output": "o"}]}, {"instruction": "i", "instances": ["o"]}, "wrong_type", "instances[1]", "expected an object with input and output"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("good", "bad", "reason", "field", "detail"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_bad_row_is_kept_with_its_place_and_its_reason(
    tmp_path: Path, good: Any, bad: Any, reason: str, field: str | None, detail: str
):
    (tmp_path / "a.jsonl").write_bytes(lines(good, good, bad, good))
    examples = list(read_examples(tmp_path / "a.jsonl"))
    assert [isinstance(example, Conversation) for example in examples] == [True, True, False, True]
    excluded = examples[2]
    assert isinstance(excluded, Excluded)
    assert (excluded.reason, excluded.field, excluded.where) == (reason, field, "a.jsonl:3")
    assert detail in excluded.detail
    assert excluded.raw is not None and len(str(excluded.raw)) <= 2000
    json.dumps(excluded.raw, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("q3,a,3", "3 cells where the header has 2; a cell with ',' in it needs quotes"),
        ("q3", "1 cells where the header has 2"),
        ('q3,"a" b', "not valid CSV: ',' expected after"),
    ],
)
def test_a_bad_line_of_a_table_is_kept_with_its_reason_and_the_rest_is_read(tmp_path: Path, line: str, detail: str):
    (tmp_path / "a.csv").write_text(f"question,answer\nq2,a2\n{line}\nq4,a4\n")
    examples = list(read_examples(tmp_path / "a.csv"))
    assert [example.source for example in examples if isinstance(example, Conversation)] == ["a.csv:2", "a.csv:4"]
    (excluded,) = [example for example in examples if isinstance(example, Excluded)]
    assert (excluded.reason, excluded.where) == ("invalid_csv", "a.csv:3")
    assert detail in excluded.detail


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["question", "answer", "instruction", "input", "output", "instances", "messages", "conversations", "role", "from", "content", "value", "id", "split", "origin", "metadata", "system", "history", "tool_calls"])
        | st.text(max_size=4),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON_VALUES, min_size=1, max_size=4), st.booleans())
def test_whatever_the_values_are_a_row_is_read_or_excluded_or_the_file_refused(
    tmp_path: Path, values: list[Any], as_list: bool
):
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps(values) if as_list else "".join(json.dumps(value) + "\n" for value in values))
    check(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([lines(GOOD, GOOD), json.dumps([GOOD, GOOD]).encode(), b'question,answer\nq,"a\nb"\n', gzip.compress(lines(GOOD)), PARQUET.getvalue().to_pybytes()]),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=3)), max_size=3),
)  # fmt: skip
def test_whatever_the_damage_is_a_file_is_read_or_refused(tmp_path: Path, data: bytes, damage: list[tuple[int, bytes]]):
    for at, inserted in damage:
        at %= len(data)
        data = data[:at] + inserted + data[at + 1 :]
        data = data or b"\n"
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(data)
    check(path)


def check(path: Path) -> None:
    try:
        examples = list(read_examples(path))
    except DataError as error:
        assert error.message and len(str(error)) < 1000
    else:
        write_records(path.with_suffix(".out"), examples)
