"""Rows that are more than one question and its answer: dialogues inside fields, preferences, labels, text, pages, archives."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.readers import READERS, read_examples
from tunesmith.data.readers.sampling import Sampled
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Preference


def write(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path: Path, *rows: Any, form: str = "auto") -> list[Example | Excluded]:
    return list(read_examples(write(tmp_path, *rows), form))


def turns(example: Any) -> list[tuple[str, str]]:
    assert isinstance(example, Conversation), example
    return [(message.role, message.content) for message in example.messages]


HISTORY = {
    "instruction": "Human:你好，能帮我吗？\nAssistant:当然。\n请说。\nHuman:三乘四？\nAssistant:",
    "input": "",
    "output": "十二。",
}
SCENE = {
    "instruction": "小明在书店里，和店员说话。",
    "input": "",
    "output": "小明：你好，有字典吗？\n店员：有的，\n在二楼。\n小明：谢谢！\n店员：不客气。\n小明：再见。",
}


def test_the_five_belle_shapes_become_conversations(tmp_path: Path):
    (triple,) = read(tmp_path, {"instruction": "加", "input": "1, 2", "output": "3"})
    assert turns(triple) == [("user", "加\n\n1, 2"), ("assistant", "3")]
    (pair,) = read(tmp_path, {"input": "加\n1, 2", "target": "3"})
    assert turns(pair) == [("user", "加\n1, 2"), ("assistant", "3")]
    (history,) = read(tmp_path, HISTORY)
    assert turns(history) == [
        ("user", "你好，能帮我吗？"), ("assistant", "当然。\n请说。"), ("user", "三乘四？"), ("assistant", "十二。"),
    ]  # fmt: skip
    (scene,) = read(tmp_path, SCENE)
    assert turns(scene) == [
        ("system", "小明在书店里，和店员说话。"), ("user", "你好，有字典吗？"), ("assistant", "有的，\n在二楼。"),
        ("user", "谢谢！"), ("assistant", "不客气。"),
    ]  # fmt: skip
    assert isinstance(scene, Conversation)
    assert scene.metadata == {"speakers": {"user": "小明", "assistant": "店员"}, "turns_cut": 1}
    (talk,) = read(
        tmp_path, {"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "assistant", "value": "b"}]}
    )
    assert turns(talk) == [("user", "a"), ("assistant", "b")]


def test_a_history_that_the_assistant_ended_answers_nothing(tmp_path: Path):
    bad = {**HISTORY, "instruction": "Human: a\nAssistant: b"}
    _, excluded = read(tmp_path, HISTORY, bad)
    assert isinstance(excluded, Excluded)
    assert (excluded.reason, excluded.field) == ("bad_turns", "instruction")


def test_a_known_role_decides_who_the_user_is_whoever_speaks_first(tmp_path: Path):
    row = {"instruction": "商店里。", "output": "客服：您好！\n顾客：我要退货。\n客服：好的。"}
    (example,) = read(tmp_path, row)
    assert turns(example)[1:] == [("user", "我要退货。"), ("assistant", "好的。")]
    assert isinstance(example, Conversation) and example.metadata["turns_cut"] == 1


PLAIN = [{"instruction": f"Name {n} colours.", "output": "Red: warm. Blue: cold."} for n in range(19)]
ASKED = {"instruction": "Write a dialogue between Tom and Ann.", "output": "Tom: Hi!\nAnn: Hello.\nTom: Bye."}


def test_an_answer_that_is_a_dialogue_stays_an_answer_in_a_file_of_other_answers(tmp_path: Path):
    example = read(tmp_path, *PLAIN, ASKED)[-1]
    assert turns(example) == [("user", ASKED["instruction"]), ("assistant", ASKED["output"])]


def test_a_file_half_of_dialogues_is_ambiguous_and_shows_both_readings(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, *PLAIN[:3], SCENE, SCENE, SCENE)
    message = str(caught.value)
    assert "3 of the first 6 rows can be read in two ways" in message
    assert (
        "as instruction -> output: instruction = '小明" in message
        and "or as instruction -> dialogue in output" in message
    )
    assert "ingest.format" in (caught.value.hint or "")


def test_one_dialogue_that_was_asked_for_is_ambiguous_until_the_form_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="two ways"):
        read(tmp_path, ASKED)
    (plain,) = read(tmp_path, ASKED, form="alpaca_plain")
    assert turns(plain)[-1] == ("assistant", ASKED["output"])
    (split,) = read(tmp_path, ASKED, form="belle_generated_chat")
    assert turns(split)[1:] == [("user", "Hi!"), ("assistant", "Hello.")]


def test_a_row_that_is_no_dialogue_in_a_file_of_dialogues_is_kept_with_its_reason(tmp_path: Path):
    excluded = read(tmp_path, *[SCENE] * 10, {**SCENE, "output": "没有人说话。"})[-1]
    assert isinstance(excluded, Excluded)
    assert (excluded.reason, excluded.field, excluded.where) == ("bad_turns", "output", "rows.jsonl:11")


def test_an_unknown_form_is_refused_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no reader named 'alpacca'"):
        read(tmp_path, {"instruction": "i", "output": "o"}, form="alpacca")


USER, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "good"},
    {"role": "assistant", "content": "bad"},
)
SYSTEM = {"role": "system", "content": "s"}
HH = "\n\nHuman: q\n\nAssistant: {}"
PREFERENCES: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("texts", {"prompt": "q", "chosen": "good", "rejected": "bad"}, [("user", "q")]),
    ("BELLE's misspelt key", {"prompt": "q", "chosen": "good", "reject": "bad"}, [("user", "q")]),
    ("alpaca", {"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"}, [("user", "q\n\nx")]),
    ("a system message", {"prompt": "q", "system": "s", "chosen": "good", "rejected": "bad"}, [("system", "s"), ("user", "q")]),
    ("turns", {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}, [("system", "s"), ("user", "q")]),
    ("implicit", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [("user", "q")]),
    ("prompt and dialogues", {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [("user", "q")]),
    ("HH", {"chosen": HH.format("good"), "rejected": HH.format("bad")}, [("user", "q")]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}, [("user", "q")]),
    ("messages and a worse reply", {"messages": [USER, GOOD], "rejected_response": "bad"}, [("user", "q")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), [each[1:] for each in PREFERENCES], ids=[each[0] for each in PREFERENCES])
def test_a_row_of_two_answers_becomes_a_preference(tmp_path: Path, row: dict[str, Any], prompt: list[tuple[str, str]]):
    (example,) = read(tmp_path, {**row, "score_chosen": 9, "score_rejected": 2.5, "license": "MIT"})
    assert isinstance(example, Preference), example
    assert [(message.role, message.content) for message in example.prompt] == prompt
    assert (example.chosen, example.rejected) == ("good", "bad")
    assert (example.scores, example.licence, example.metadata) == ({"chosen": 9.0, "rejected": 2.5}, "MIT", {})


@pytest.mark.parametrize(
    ("row", "reason", "field", "detail"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "no_preference", "rejected", "the same text"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty_prompt", "prompt", "is empty"),
        ({"chosen": "a", "rejected": "b"}, "empty_prompt", None, "has no prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "empty_reply", "rejected", "is empty"),
        ({"prompt": "q", "chosen": 1, "rejected": "b"}, "empty_reply", "chosen", "is a number"),
        ({"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "ambiguous", "prompt", "another prompt"),
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "z"}, BAD]}, "bad_turns", "rejected", "part before"),
        ({"prompt": "q", "chosen": [USER], "rejected": [BAD]}, "bad_turns", "chosen", "ends in a turn of the user"),
    ],
)
def test_a_bad_pair_is_kept_with_its_reason(tmp_path: Path, row: Any, reason: str, field: str | None, detail: str):
    *_, excluded = read(tmp_path, PREFERENCES[0][1], row)
    assert isinstance(excluded, Excluded)
    assert (excluded.reason, excluded.field, excluded.where) == (reason, field, "rows.jsonl:2")
    assert detail in excluded.detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": "a"}], "label": True},
        {"messages": [USER, {"role": "assistant", "content": "a"}], "label": True},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": "true"},
        {"instruction": "q", "output": "a", "kto_tag": 1},
    ],
)
def test_a_labelled_row_becomes_one(tmp_path: Path, row: dict[str, Any]):
    name = "kto_tag" if "kto_tag" in row else "label"
    good, bad = read(tmp_path, row, {**row, name: False})
    assert isinstance(good, Labelled) and isinstance(bad, Labelled)
    assert ([message.content for message in good.prompt], good.reply) == (["q"], "a")
    assert (good.desirable, bad.desirable) == (True, False)
    assert good.id != bad.id


def test_a_label_that_is_a_class_is_no_thumb(tmp_path: Path):
    (example,) = read(tmp_path, {"prompt": "q", "completion": "a", "label": "sports"})
    assert isinstance(example, Conversation) and example.metadata == {"label": "sports"}


def test_prompt_and_completion_may_be_lists_of_turns(tmp_path: Path):
    (example,) = read(tmp_path, {"prompt": [SYSTEM, USER], "completion": [GOOD]})
    assert turns(example) == [("system", "s"), ("user", "q"), ("assistant", "good")]


def test_a_function_call_of_before_tool_calls_is_one(tmp_path: Path):
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    rows = {"messages": [USER, call, {"role": "function", "name": "f", "content": "1"}, GOOD]}
    (example,) = read(tmp_path, rows)
    assert isinstance(example, Conversation)
    assert example.messages[1].tool_calls == [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_rows_of_text_and_text_files_become_documents(tmp_path: Path):
    (row,) = read(tmp_path, {"text": "Once.", "url": "u"})
    assert isinstance(row, Document) and (row.text, row.metadata) == ("Once.", {"url": "u"})
    (tmp_path / "book.txt").write_text("\ufeffHello, world\n\n[1] Notes, and more\n", encoding="utf-8")
    (book,) = read_examples(tmp_path / "book.txt")
    assert isinstance(book, Document)
    assert (book.text, book.source) == ("Hello, world\n\n[1] Notes, and more", "book.txt:1")


def test_the_text_beside_an_instruction_is_not_the_example(tmp_path: Path):
    (example,) = read(tmp_path, {"instruction": "i", "input": "", "output": "o", "text": "rendered"})
    assert turns(example) == [("user", "i"), ("assistant", "o")]


def test_long_text_is_cut_at_empty_lines_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tunesmith.data.readers import containers

    monkeypatch.setattr(containers, "_TEXT_CHARACTERS", 100)
    paragraphs = [f"{n} " + "x" * (n % 37) for n in range(60)]
    (tmp_path / "a.md").write_text("\n\n".join(paragraphs))
    pieces = [example for example in read_examples(tmp_path / "a.md") if isinstance(example, Document)]
    assert "\n\n".join(piece.text for piece in pieces).split("\n\n") == paragraphs
    assert len(pieces) > 5 and all(len(piece.text) <= 100 for piece in pieces)
    lines = (tmp_path / "a.md").read_text().split("\n")
    assert all(lines[int(p.source.split(":")[1]) - 1] == p.text.split("\n")[0] for p in pieces)


def test_a_zip_is_read_member_by_member(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist([{"question": "p", "answer": "a"}]), tmp_path / "p.parquet")
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/rows.jsonl", '{"question": "q", "answer": "a"}\n{"question": "", "answer": "a"}\n')
        archive.writestr("a.csv", "instruction,output\ni,o\n")
        archive.writestr("LICENSE", "MIT")
        archive.write(tmp_path / "p.parquet", "p.parquet")
    examples = list(read_examples(tmp_path / "rows.zip"))
    assert [e.source if not isinstance(e, Excluded) else (e.where, e.reason) for e in examples] == [
        ("rows.zip/LICENSE", "no_data_file"),
        "rows.zip/a.csv:2",
        "rows.zip/b/rows.jsonl:1",
        ("rows.zip/b/rows.jsonl:2", "empty_prompt"),
        "rows.zip/p.parquet#1",
    ]


def test_a_damaged_zip_and_an_encrypted_member_are_clear_errors(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 not one")
    with pytest.raises(DataError, match=r"a\.zip: the archive is damaged"):
        list(read_examples(tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"question": "q", "answer": "a"}\n')
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"b\.zip/a\.jsonl: this member is encrypted"):
        list(read_examples(tmp_path / "b.zip"))


def test_a_sample_is_the_same_every_time_keeps_the_order_and_grows_by_addition(tmp_path: Path):
    path = write(tmp_path, *[{"question": f"q{n}", "answer": "a"} for n in range(200)], {"question": "", "answer": "a"})

    def draw(size: int, rng_seed: int = 17) -> list[str]:
        sampled = Sampled(read_examples(path), size, rng_seed)
        examples = list(sampled)
        drawn = [example.source for example in examples if isinstance(example, Conversation)]
        assert len(examples) - len(drawn) == 1 and sampled.num_left_out == 200 - len(drawn)
        return drawn

    assert draw(20) == draw(20) == sorted(draw(20), key=lambda place: int(place.split(":")[1]))
    assert len(draw(20)) == 20 and set(draw(20)) < set(draw(50))
    assert draw(20) != draw(20, rng_seed=18)
    assert len(draw(1000)) == 200 and draw(0) == []


def test_numbers_too_long_for_the_fast_parser_are_kept_to_the_digit(tmp_path: Path):
    (example,) = read(tmp_path, {"question": "q", "answer": "a", "n": 123456789012345678901234567890})
    assert isinstance(example, Conversation) and example.metadata == {"n": 123456789012345678901234567890}


def test_every_reader_is_documented_in_its_recipe_field_or_recognised():
    assert all(READERS.load(name).name == name for name in READERS)
