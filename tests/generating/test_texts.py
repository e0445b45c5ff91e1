"""Answers that are no rows."""

from __future__ import annotations

import pytest

from tunesmith.generating.parsing import Broken, Row, parse_objects
from tunesmith.generating.texts import list_of_texts, plain_text, transcript, verdict


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  Name three birds. ", "Name three birds."),
        ("<think>hm</think>New instruction: Name three birds.", "Name three birds."),
        ('"Name three birds."', "Name three birds."),
        ("```\nName three birds.\n```", "Name three birds."),
        ('"a" and "b"', '"a" and "b"'),
        ("译文：说出三种鸟。", "说出三种鸟。"),
    ],
)
def test_a_single_text_loses_its_wrapping(answer: str, text: str) -> None:
    assert plain_text(answer) == text


def test_a_list_is_read_numbered_bare_or_as_json() -> None:
    assert list_of_texts("Here they are:\n1. One\n2) Two\n\n3、三", cut=False, most=5) == ["One", "Two", "三"]
    assert list_of_texts("One\nTwo", cut=False, most=5) == ["One", "Two"]
    assert list_of_texts('```json\n["One", "Two 2. x"]\n```', cut=False, most=5) == ["One", "Two 2. x"]
    assert list_of_texts('[{"question": "One?"}, {"id": 2, "question": "Two?"}]', cut=False, most=5) == ["One?", "Two?"]
    assert list_of_texts('{"question": "One?"}\n{"question": "Two?"}', cut=False, most=5) == ["One?", "Two?"]


def test_the_last_text_of_a_cut_list_is_broken_and_an_empty_answer_unreadable() -> None:
    first, second = list_of_texts("1. One\n2. Tw", cut=True, most=5)
    assert first == "One"
    assert isinstance(second, Broken)
    assert second.reason == "cut_off"
    assert list_of_texts('["One", "Two"] and then', cut=True, most=5) == ["One", "Two"]
    (nothing,) = list_of_texts(" ", cut=False, most=5)
    assert isinstance(nothing, Broken)
    assert nothing.reason == "unreadable"


def test_texts_nobody_asked_for_and_empty_ones_are_pieces_of_their_own() -> None:
    one, empty, more = list_of_texts('["One", " ", "Three"]', cut=False, most=2)
    assert one == "One"
    assert isinstance(empty, Broken) and isinstance(more, Broken)
    assert (empty.reason, more.reason, more.text) == ("empty", "surplus", "Three")
    (alone,) = list_of_texts('["\\n"]', cut=False, most=2)
    assert isinstance(alone, Broken)
    assert alone.reason == "empty"


@pytest.mark.parametrize(
    ("answer", "found"),
    [("Yes.", True), ("no, because", False), ("Not Equal", False), ("是", True), ("不是", False), ("否。", False),
     ("maybe", None), ("", None)],
)  # fmt: skip
def test_a_verdict_is_yes_no_or_nothing(answer: str, found: bool | None) -> None:
    assert verdict(answer) is found


@pytest.mark.parametrize(
    "answer",
    [
        "User: Hi\nAssistant: Hello.\nHow can I help?\nUser: Time?\nAssistant: Noon.",
        "[Human]: Hi\n[AI]: Hello.\nHow can I help?\n[Human]: Time?\n[AI]: Noon.",
        "**User:** Hi\n**Assistant:** Hello.\nHow can I help?\n**User:** Time?\n**Assistant:** Noon.\nUser: Thanks",
        "用户：Hi\n助手：Hello.\nHow can I help?\n用户：Time?\n助手：Noon.",
        '[{"user": "Hi", "assistant": "Hello.\\nHow can I help?"}, {"user": "Time?", "assistant": "Noon."}]',
        '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.\\nHow can I help?"},'
        ' {"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon."}]',
    ],
)
def test_a_transcript_becomes_turns(answer: str) -> None:
    turns = transcript(answer, cut=False)
    assert not isinstance(turns, Broken)
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "Hi"), ("assistant", "Hello.\nHow can I help?"), ("user", "Time?"), ("assistant", "Noon."),
    ]  # fmt: skip


def test_a_transcript_that_was_cut_ends_with_the_last_whole_exchange() -> None:
    turns = transcript("User: Hi\nAssistant: Hello.\nUser: Time?\nAssistant: Noo", cut=True)
    assert not isinstance(turns, Broken)
    assert len(turns) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("", "unreadable"), ("no talk", "unreadable"), ("User: a\nUser: b\nAssistant: c", "bad_turns"),
     ("User: a\nAssistant:\nUser: b\nAssistant: c", "empty")],
)  # fmt: skip
def test_a_transcript_that_is_none_is_broken_with_its_reason(answer: str, reason: str) -> None:
    found = transcript(answer, cut=False)
    assert isinstance(found, Broken)
    assert found.reason == reason


def test_objects_with_other_fields_are_read_and_their_faults_named() -> None:
    text = '{"Question": "q1", "类型": "t"}\n{"question": "q2"}\n[{"question": "q3", "type": "u"},]\n{"question": "q4'
    found = parse_objects(text, fields={"type": ("类型",), "question": ()}, cut=True)
    assert [piece.input["question"] for piece in found if isinstance(piece, Row)] == ["q1", "q3"]
    assert [piece.reason for piece in found if isinstance(piece, Broken)] == ["bad_keys", "cut_off"]
