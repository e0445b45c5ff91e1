"""Every known shape of row becomes the conversation it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.readers import READERS, read_examples
from tunesmith.types import Conversation, Excluded


def read(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> list[Conversation | Excluded]:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return list(read_examples(path))


def one(tmp_path: Path, row: Any) -> Conversation:
    (example,) = read(tmp_path, row)
    assert isinstance(example, Conversation), example
    return example


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, [("user", "Add.\n\n1, 2"), ("assistant", "3")]),
        ({"instruction": "Hi", "input": "", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        ({"instruction": "Hi", "input": None, "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        (
            {"instruction": "Q", "context": "C", "response": "R", "category": "qa"},
            [("user", "Q\n\nC"), ("assistant", "R")],
        ),
        (
            {"instruction": "3", "output": "4", "system": "s", "history": [["1", "2"]]},
            [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")],
        ),
        ({"instruction": "only"}, [("user", "only")]),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "bard", "value": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {"conversations": [{"role": "Human", "content": "a"}, {"role": "chatgpt", "content": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "d"},
                    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
                ]
            },
            [("system", "d"), ("user", "x\ny")],
        ),
        ({"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "completion": "a", "system": "s"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"input": "q", "target": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"input": "q", "output": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q"}, [("user", "q")]),
    ],
)
def test_a_row_becomes_its_turns(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]):
    conversation = one(tmp_path, row)
    assert turns(conversation) == expected
    assert conversation.source == "rows.jsonl:1"


def test_tool_calls_and_results_are_kept(tmp_path: Path):
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "user", "content": "In stock?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "stock"},
            {"role": "assistant", "content": "Three.", "reasoning_content": "3 is three"},
        ],
        "tools": [{"type": "function"}],
    }
    conversation = one(tmp_path, row)
    assert conversation.messages[1].tool_calls == [call]
    assert (conversation.messages[2].tool_call_id, conversation.messages[2].name) == ("c1", "stock")
    assert conversation.messages[3].reasoning == "3 is three"
    assert conversation.metadata == {"tools": [{"type": "function"}]}


def test_tools_in_a_cell_of_a_table_are_the_list_they_spell(tmp_path: Path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = one(tmp_path, {"messages": talk, "tools": '[{"type": "function"}]'})
    assert row.metadata == {"tools": [{"type": "function"}]}
    assert one(tmp_path, {"messages": talk, "tools": "hammer"}).metadata == {"tools": "hammer"}
    assert one(tmp_path, {"messages": talk, "tools": "[" * 100_000}).metadata == {"tools": "[" * 100_000}


def test_a_function_call_of_sharegpt_is_a_tool_call(tmp_path: Path):
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a"},
        ]
    }
    conversation = one(tmp_path, row)
    assert conversation.messages[1].tool_calls == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert conversation.messages[2].role == "tool"


def test_every_instance_of_a_seed_task_is_an_example_and_all_have_one_origin(tmp_path: Path):
    row = {
        "id": "seed_1",
        "instruction": "Double it.",
        "instances": [{"input": "2", "output": "4"}, {"input": "3", "output": "6"}],
        "is_classification": False,
    }
    first, second = read(tmp_path, row)
    assert isinstance(first, Conversation) and isinstance(second, Conversation)
    assert [turns(first)[0][1], turns(second)[0][1]] == ["Double it.\n\n2", "Double it.\n\n3"]
    assert first.origin == second.origin == first.id != second.id
    assert first.metadata == {"is_classification": False, "row_id": "seed_1", "input_at": len("Double it.\n\n")}


def test_optional_fields_of_a_row_are_honoured_and_unknown_ones_kept(tmp_path: Path):
    row = {
        "question": "q", "answer": "a", "id": 7, "split": "validation", "group": "g1", "license": "MIT",
        "metadata": {"by": "me"}, "difficulty": 3, "empty": "",
    }  # fmt: skip
    conversation = one(tmp_path, row)
    assert conversation.split == "test"
    assert conversation.origin == "g1"
    assert conversation.licence == "MIT"
    assert conversation.metadata == {"difficulty": 3, "by": "me", "row_id": 7}


def test_rows_with_no_name_of_their_own_have_the_id_of_their_messages(tmp_path: Path):
    first, second, third = read(tmp_path, *[{"question": q, "answer": "a"} for q in ("x", "x", "y")])
    assert isinstance(first, Conversation) and isinstance(second, Conversation) and isinstance(third, Conversation)
    assert first.id == second.id == first.origin
    assert third.id != first.id


def test_a_stray_row_of_another_shape_does_not_change_how_the_file_is_read(tmp_path: Path):
    pairs = [{"question": f"q{n}", "answer": "a"} for n in range(3)]
    examples = read(tmp_path, *pairs, {"instruction": "i", "output": "o"}, {"question": "alone"})
    assert [type(example).__name__ for example in examples] == ["Conversation"] * 3 + ["Excluded"] * 2
    stray, alone = examples[3:]
    assert isinstance(stray, Excluded) and isinstance(alone, Excluded)
    assert (stray.where, stray.reason) == ("rows.jsonl:4", "missing_field")
    assert "expected question and answer" in stray.detail and "the row has: instruction, output" in stray.detail
    assert (alone.field, alone.detail) == ("answer", "the row has no field 'answer'; it has: question")
    assert alone.raw == {"question": "alone"}


def test_a_reply_that_turns_up_late_is_not_taken_for_metadata(tmp_path: Path):
    rows = [{"question": f"q{n}"} for n in range(60)] + [{"question": "late", "answer": "a"}]
    last = read(tmp_path, *rows)[-1]
    assert isinstance(last, Conversation)
    assert last.reply == "a"


def test_a_reader_can_be_called_by_name(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "i", "output": "o", "messages": []}\n')
    (example,) = READERS.load("alpaca")(path)
    assert turns(example) == [("user", "i"), ("assistant", "o")]
    assert set(READERS) == {
        "alpaca", "alpaca_plain", "belle_generated_chat", "belle_multiturn", "labelled", "openai_messages", "preference",
        "question_response", "seed_tasks", "sharegpt", "sharegpt_page", "text",
    }  # fmt: skip


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"loss_weight": 0}, {"train": False}, {"training": False}, {"loss": False}])  # fmt: skip
def test_a_turn_that_is_not_to_be_learnt_has_weight_0_by_any_of_its_names(tmp_path: Path, flag: dict[str, Any]):
    talk = [{"from": "human", "value": "u", **flag}, {"from": "gpt", "value": "a", **flag}]
    more = [
        {"from": "human", "value": "v"},
        {"from": "gpt", "value": "b", **{name: 1 - value for name, value in flag.items()}},
    ]
    more[1] = {name: bool(value) if isinstance(flag.get(name), bool) else value for name, value in more[1].items()}
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": [*talk, *more]}) + "\n")
    (row,) = read_examples(tmp_path / "a.jsonl")
    assert isinstance(row, Conversation)
    assert [message.weight for message in row.messages] == [None, 0, None, None]


def test_a_call_may_have_a_weight_and_a_measured_loss_is_none(tmp_path: Path):
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "weight": 0}
    turns = [{"from": "human", "value": "u"}, call, {"from": "observation", "value": "1"}]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"conversations": [*turns, {"from": "gpt", "value": "a", "loss": 0.7}]})
    )
    (row,) = read_examples(tmp_path / "a.jsonl")
    assert isinstance(row, Conversation)
    assert [message.weight for message in row.messages] == [None, 0, None, None]


def test_a_weight_of_1_changes_no_id(tmp_path: Path):
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": [turns[0], {**turns[1], "weight": 1}]}) + "\n"
    )
    first, second = read_examples(tmp_path / "a.jsonl")
    assert isinstance(first, Conversation) and isinstance(second, Conversation)
    assert first.id == second.id


def test_a_system_prompt_beside_a_question_is_the_system_message(tmp_path: Path):
    example = one(tmp_path, {"id": "niv.1", "system_prompt": "Be exact.", "question": "2 + 2?", "response": "4"})
    assert turns(example) == [("system", "Be exact."), ("user", "2 + 2?"), ("assistant", "4")]
    assert "system_prompt" not in example.metadata
