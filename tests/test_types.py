"""The words of the domain."""

from __future__ import annotations

from tunesmith.types import Conversation, Message

SAID = [Message(role="user", content="q"), Message(role="assistant", content="a")]


def test_a_row_is_found_by_its_source_by_the_request_that_made_it_or_by_its_id() -> None:
    assert Conversation(messages=SAID, source="seeds.jsonl:41").place == "seeds.jsonl:41"
    generated = Conversation(messages=SAID, source="maths:openai:m", metadata={"request": 3})
    assert generated.place == "maths:openai:m, request 3"
    assert Conversation(id="ab", messages=SAID).place == "ab"
