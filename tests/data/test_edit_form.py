"""Conversations as text to edit: nothing is lost, and what is wrong is said."""

from __future__ import annotations

import pytest

from tunesmith.data.edit_form import EditForm
from tunesmith.errors import DataError
from tunesmith.types import Message


def talk(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[place % 2], content=text) for place, text in enumerate(texts)]


def read(messages: list[Message], text: str) -> list[Message]:
    return EditForm(messages).read(text)


TALKS = [
    talk("a", "b"),
    talk("a\n\nb", "\n # c\n\n"),
    talk("=== user ===\nx", "===== assistant =====\n=== tool ==="),
    talk("你好", "🙂\u2028\u0085\x0c"),
    [Message(role="system", content=""), *talk("a", "b", "c", "d")],
    [*talk("a"), Message(role="assistant", content="b", reasoning="hm\n")],
    talk("a", "b\r\nc"),
    [*talk("a"), Message(role="assistant", content="b", reasoning="")],
    [
        *talk("a"),
        Message(role="assistant", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]),
        Message(role="tool", content="1", tool_call_id="x"),
        Message(role="assistant", content="b", name="n"),
    ],
]


@pytest.mark.parametrize("messages", TALKS)
def test_nothing_is_lost_on_the_way(messages: list[Message]):
    form = EditForm(messages)
    assert form.read(form.write(messages)) == messages


def test_the_text_is_plain_to_read():
    assert EditForm(TALKS[0]).write(TALKS[0]) == "=== user ===\na\n=== assistant ===\nb\n"
    assert EditForm(TALKS[0]).ending == ".md" and EditForm(TALKS[-1]).ending == ".jsonl"
    assert EditForm(TALKS[2]).write(TALKS[2]).startswith("====== user ======\n=== user ===\nx\n====== assistant")


def test_turns_can_be_changed_added_and_taken_out():
    text = "=== system ===\nBe brief.\n===user===\na\n=== Assistant ===\nc\n"
    assert read(talk("a", "b"), text) == [Message(role="system", content="Be brief."), *talk("a", "c")]
    assert read(talk("a", "b", "c", "d"), "=== user ===\na\n=== assistant ===\nb") == talk("a", "b")
    assert read(talk("a", "b"), "=== user ===\r\na\r\n=== assistant ===\r\nb\r\n") == talk("a", "b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no turn left"),
        ("a\n=== user ===\n", "line 1 stands before the first role"),
        ("=== user ===\na\n=== robot ===\nb\n", "line 3 names the role 'robot', expected one of system, user"),
        ("=== user ===\na\n", "the last turn is the user's, expected a reply"),
        ("=== assistant ===\na\n", "no user spoke yet"),
        ("=== user ===\na\n=== assistant ===\n\n", r"turn 2 \(assistant\) is empty"),
        ("=== user ===\na\n=== assistant reasoning ===\nb\n", "the reasoning stands at the end"),
        ("=== assistant reasoning ===\nb\n=== user ===\na\n", "after the reasoning stands a turn of 'user'"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str):
    with pytest.raises(DataError, match=problem):
        read(talk("a", "b"), text)


def test_a_wrong_line_of_json_is_named():
    calling = TALKS[-1]
    with pytest.raises(DataError, match="line 2 is no JSON"):
        read(calling, '{"role": "user", "content": "a"}\n{"role": \n')
    with pytest.raises(DataError, match="line 1 is no message: field 'role'"):
        read(calling, '{"role": "robot"}')
