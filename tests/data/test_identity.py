"""Equal rows are equal whatever their case, width and spacing."""

from __future__ import annotations

import pytest

from tunesmith.data.identity import normalise, prompt_key, reply_key, with_system_prompt
from tunesmith.types import Conversation, Message


def chat(*texts: str) -> Conversation:
    roles = ["user", "assistant"] * len(texts)
    return Conversation(messages=[Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Hello  World\n", "hello world"),
        ("ＡＢＣ１", "abc1"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "CAFÉ"),
        ("a\u00a0b", "a b"),
    ],
)
def test_texts_a_person_would_call_the_same_are_equal(a: str, b: str):
    assert normalise(a) == normalise(b)
    assert prompt_key(chat(a, "x")) == prompt_key(chat(b, "y"))
    assert reply_key(chat("x", a)) == reply_key(chat("y", b))


def test_other_words_other_roles_and_other_turns_are_different():
    assert prompt_key(chat("a", "r")) != prompt_key(chat("b", "r"))
    assert prompt_key(chat("a", "b", "c", "r")) != prompt_key(chat("a\nb\nc", "r"))
    call = Conversation(messages=[Message(role="user"), Message(role="assistant", tool_calls=[{"name": "f"}])])
    other = Conversation(messages=[Message(role="user"), Message(role="assistant", tool_calls=[{"name": "g"}])])
    assert reply_key(call) != reply_key(other)
    assert reply_key(chat("a")) == reply_key(chat("b"))  # neither has one


def test_a_system_prompt_goes_in_front_once_and_only_where_there_is_none():
    plain = Conversation(messages=chat("q", "a").messages, source="s:1", origin="o", split="test", metadata={"k": 1})
    prompted = with_system_prompt(plain, "Be brief.")
    assert [message.role for message in prompted.messages] == ["system", "user", "assistant"]
    assert prompted.id == Conversation(messages=prompted.messages).id != plain.id
    assert (prompted.source, prompted.origin, prompted.split, prompted.metadata) == ("s:1", "o", "test", {"k": 1})
    assert with_system_prompt(prompted, "Other.") is prompted
    assert with_system_prompt(plain, None) is plain
