"""What is written is read back as the same example; what a form cannot hold is counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.readers import read_examples
from tunesmith.data.writers import WRITERS, write_examples
from tunesmith.errors import DataError, RecipeError
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Message, Preference

ENDINGS = {"csv": "csv", "parquet": "parquet"}


def message(role: Any, content: str, **fields: Any) -> Message:
    return Message(role=role, content=content, **fields)


ASK, REPLY = message("user", 'Add "1", 2;\n3 狗'), message("assistant", "| six |\n```\nx\n```")
CALL = message("assistant", "", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
EXTRA: dict[str, Any] = {
    "split": "test",
    "origin": "o",
    "licence": "MIT",
    "metadata": {"model": "GPT-4", "n": 1, "row_id": "r1"},
}
EXAMPLES: dict[str, list[Example]] = {
    "conversation": [
        Conversation(messages=[ASK, REPLY]),
        Conversation(messages=[message("system", "s"), ASK, REPLY, message("user", "and?"), message("assistant", "b")], **EXTRA),
    ],
    "preference": [Preference(prompt=[message("system", "s"), ASK], chosen="c", rejected="r", scores={"chosen": 2.0, "rejected": 1.0}, **EXTRA)],
    "labelled": [Labelled(prompt=[ASK], reply="a", desirable=True), Labelled(prompt=[ASK], reply="b", desirable=False, **EXTRA)],
    "document": [Document(text="Once,\n\nupon.", **EXTRA)],
}  # fmt: skip


def back(path: Path) -> list[Example]:
    examples = list(read_examples(path))
    assert not any(isinstance(example, Excluded) for example in examples), examples
    return [example for example in examples if not isinstance(example, Excluded)]


def essence(example: Example) -> dict[str, Any]:
    fields = example.model_dump(exclude_none=True)
    fields["metadata"] = {name: value for name, value in fields["metadata"].items() if name != "source"}
    return {name: value for name, value in fields.items() if name != "source"}


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("form", WRITERS)
def test_every_kind_comes_back_from_every_form_that_holds_it(tmp_path: Path, form: str, kind: str):
    path = tmp_path / f"out.{ENDINGS.get(form, 'jsonl')}"
    done = write_examples(EXAMPLES[kind], path, form)
    if (form, kind) == ("alpaca", "document"):
        assert (done.num_written, done.num_excluded) == (0, 1)
        return
    assert (done.num_written, done.num_excluded, done.lost) == (len(EXAMPLES[kind]), 0, {})
    assert [essence(example) for example in back(path)] == [essence(example) for example in EXAMPLES[kind]]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("form", ["messages", "parquet"])
def test_tools_and_thoughts_come_back_where_the_form_holds_them(tmp_path: Path, form: str):
    result = message("tool", "6", tool_call_id="c1", name="f")
    row = Conversation(messages=[ASK, CALL, result, message("assistant", "six", reasoning="hm")])
    path = tmp_path / f"out.{ENDINGS.get(form, 'jsonl')}"
    assert write_examples([row], path, form).lost == {}
    assert [example.id for example in back(path)] == [row.id]


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]  # fmt: skip


def test_a_row_of_messages_with_tools_is_written_as_it_was_read(tmp_path: Path):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "Double 3."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "6", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "Six."},
        ],
        "tools": TOOLS,
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    (first,) = back(tmp_path / "in.jsonl")
    write_examples([first], tmp_path / "out.jsonl", "messages")
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == {**row, "metadata": {"source": "in.jsonl:1"}}
    assert [essence(each) for each in back(tmp_path / "out.jsonl")] == [essence(first)]


@pytest.mark.parametrize("kind", ["conversation", "preference", "labelled"])
@pytest.mark.parametrize("form", WRITERS)
def test_tools_come_back_from_every_form_and_stand_at_the_top_where_programs_look(tmp_path: Path, form: str, kind: str):
    rows = [each.model_copy(update={"metadata": {**each.metadata, "tools": TOOLS}}) for each in EXAMPLES[kind]]
    path = tmp_path / f"out.{ENDINGS.get(form, 'jsonl')}"
    assert write_examples(rows, path, form).num_written == len(rows)
    assert [essence(each) for each in back(path)] == [essence(each) for each in rows]
    if form in ("messages", "sharegpt"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["tools"] for line in lines] == [TOOLS] * len(rows)


def test_what_sharegpt_has_no_place_for_is_counted(tmp_path: Path):
    result = message("tool", "6", tool_call_id="c1", name="f")
    row = Conversation(messages=[ASK, CALL, result, message("assistant", "six", reasoning="hm")])
    done = write_examples([row], tmp_path / "out.jsonl", "sharegpt")
    assert done.lost == {"reasoning": 1, "name": 1, "tool_call_id": 1}
    (example,) = back(tmp_path / "out.jsonl")
    assert isinstance(example, Conversation) and example.messages[1] == CALL


@pytest.mark.parametrize("form", ["alpaca", "csv"])
def test_an_example_the_form_cannot_hold_is_kept_beside_it_with_the_reason(tmp_path: Path, form: str):
    tools = Conversation(messages=[ASK, CALL, message("tool", "6"), REPLY], source="a.jsonl:2")
    bad = Excluded(reason="empty_reply", where="a.jsonl:3")
    done = write_examples([Conversation(messages=[ASK, REPLY]), tools, bad], tmp_path / "out", form)
    assert (done.num_written, done.num_excluded) == (1, 2)
    assert done.reasons == {"cannot_hold": 1, "empty_reply": 1}
    assert done.excluded_path is not None
    first, second = read_records(done.excluded_path, Excluded)
    assert (first.where, first.detail) == ("a.jsonl:2", f"it has tool calls, which {form} cannot hold")
    assert first.conversation == tools and second == bad


def test_instruction_and_input_come_apart_again(tmp_path: Path):
    rows = [
        {"instruction": "Add.\n\nAll.", "input": "1\n\n2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Ho"},
    ]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    write_examples(read_examples(tmp_path / "in.json"), tmp_path / "out.jsonl", "alpaca")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    assert written[0]["metadata"] == {"source": "in.json#1"}


def test_the_input_of_a_seed_task_is_written_as_its_input(tmp_path: Path):
    instances = [{"input": "1\n\n2", "output": "3"}, {"input": "", "output": "none"}, {"input": "4 5", "output": "9"}]
    task = {"instruction": "Add.\n\nAll.", "instances": instances}
    (tmp_path / "in.jsonl").write_text(json.dumps(task))
    write_examples(read_examples(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", "alpaca")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{"input": row["input"], "output": row["output"]} for row in written] == instances
    assert {row["instruction"] for row in written} == {"Add.\n\nAll."}


def test_two_kinds_in_one_file_are_refused_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(DataError, match="a Document among rows that are each a Conversation"):
        write_examples([EXAMPLES["conversation"][0], EXAMPLES["document"][0]], tmp_path / "out.jsonl", "messages")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form_is_refused_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        write_examples([], tmp_path / "out", "sharegtp")
    assert caught.value.hint == "did you mean 'sharegpt'?"


@pytest.mark.parametrize("form", WRITERS)
def test_real_files_come_back_from_every_form(shared_data: Path, tmp_path: Path, form: str):
    for name in ("sharegpt/dummy_conversation.json", "lamini/seed_bts.csv", "belle/zh_seed_tasks.json"):
        given = [example for example in read_examples(shared_data / name) if not isinstance(example, Excluded)]
        path = tmp_path / f"out.{ENDINGS.get(form, 'jsonl')}"
        done = write_examples(given, path, form)
        assert (done.num_written, done.lost) == (len(given), {})
        assert [example.id for example in back(path)] == [example.id for example in given]


@pytest.mark.parametrize("form", ["messages", "parquet", "sharegpt"])
def test_a_turn_that_is_not_learnt_comes_back_as_one(tmp_path: Path, form: str):
    silent_call = CALL.model_copy(update={"weight": 0})
    turns = [ASK, silent_call, message("tool", "6"), message("assistant", "six", weight=0), ASK, REPLY]
    row = Conversation(messages=turns, metadata={"weights": [0.0, 0.1]})
    path = tmp_path / f"out.{ENDINGS.get(form, 'jsonl')}"
    assert write_examples([row], path, form).num_written == 1
    (found,) = back(path)
    assert isinstance(found, Conversation)
    assert [each.weight for each in found.messages] == [None, 0, None, 0, None, None]
    assert (found.id, found.metadata["weights"]) == (row.id, [0.0, 0.1])


@pytest.mark.parametrize("form", ["alpaca", "csv"])
def test_a_form_without_weights_does_not_turn_a_silent_turn_into_a_learnt_one(tmp_path: Path, form: str):
    row = Conversation(messages=[ASK, message("assistant", "a", weight=0), ASK, REPLY])
    done = write_examples([row], tmp_path / "out", form)
    assert (done.num_written, done.reasons) == (0, {"cannot_hold": 1})
    assert done.excluded_path is not None
    (excluded,) = read_records(done.excluded_path, Excluded)
    assert excluded.detail == f"it has a turn of weight 0, which {form} cannot hold"


@pytest.mark.parametrize("form", ["alpaca", "sharegpt", "messages"])
def test_a_file_called_json_holds_one_list_and_one_called_jsonl_lines(tmp_path: Path, form: str):
    rows = EXAMPLES["conversation"]
    write_examples(rows, tmp_path / "a.json", form)
    write_examples(rows, tmp_path / "a.jsonl", form)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == lines and len(lines) == 2
    assert [essence(each) for each in back(tmp_path / "a.json")] == [essence(each) for each in rows]
    write_examples([], tmp_path / "none.json", form)
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize(("form", "name"), [("alpaca", "a.csv"), ("alpaca", "a.parquet"), ("messages", "a.PARQUET")])
def test_the_ending_of_a_file_decides_its_container(tmp_path: Path, form: str, name: str, kind: str):
    if (form, kind) == ("alpaca", "document"):
        return
    path = tmp_path / name
    assert write_examples(EXAMPLES[kind], path, form).num_written == len(EXAMPLES[kind])
    assert (path.read_bytes()[:4] == b"PAR1") == (path.suffix.lower() == ".parquet")
    assert [essence(each) for each in back(path)] == [essence(each) for each in EXAMPLES[kind]]


@pytest.mark.parametrize(
    ("form", "name", "hint"),
    [
        ("sharegpt", "a.parquet", "let it end in .jsonl or .ndjson or .json, or write `--to alpaca` or `--to messages` or `--to parquet`"),
        ("sharegpt", "a.csv", "or write `--to alpaca` or `--to csv`"),
        ("csv", "a.json", "let it end in .csv, or write `--to alpaca` or `--to sharegpt` or `--to messages`"),
        ("parquet", "a.csv", "let it end in .parquet, or write `--to alpaca` or `--to csv`"),
        ("messages", "a.jsonl.gz", "let it end in .jsonl or .ndjson or .json or .parquet"),
        ("csv", "a.tsv", "let it end in .csv"),
    ],
)  # fmt: skip
def test_a_file_is_never_called_what_it_is_not(tmp_path: Path, form: str, name: str, hint: str):
    with pytest.raises(RecipeError) as caught:
        write_examples(EXAMPLES["conversation"], tmp_path / name, form)
    assert f"{name}: the file is called .{name.rsplit('.', 1)[1]}, and {form} is not written so" in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []
