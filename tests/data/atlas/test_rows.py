"""What the map shows of each kind of row, and which text places it."""

from __future__ import annotations

from tunesmith.data.atlas.rows import map_row, placed_text
from tunesmith.types import Conversation, Document, Excluded, Labelled, Message, Preference

TALK = Conversation(
    messages=[
        Message(role="system", content="Be brief."),
        Message(role="user", content="Where is my parcel?"),
        Message(role="assistant", content="On its way.", reasoning="They ask for a parcel."),
    ],
    source="talk.jsonl:3",
    split="test",
    licence="CC-BY-4.0",
)


def test_a_conversation_keeps_its_turns_and_reasoning_in_order() -> None:
    row = map_row(TALK)
    assert [turn.role for turn in row.turns] == ["system", "user", "reasoning", "assistant"]
    assert (row.row_id, row.source, row.split, row.licence) == (TALK.id, "talk.jsonl:3", "test", "CC-BY-4.0")
    assert row.num_characters == sum(
        map(len, ("Be brief.", "Where is my parcel?", "On its way.", "They ask for a parcel."))
    )


def test_the_system_message_never_decides_where_a_row_lies() -> None:
    row = map_row(TALK)
    assert placed_text(row, "prompt") == "Where is my parcel?\nThey ask for a parcel."
    assert placed_text(row, "reply") == "On its way."
    assert "Be brief." not in placed_text(row, "conversation")


def test_a_row_without_reply_has_no_text_to_be_placed_by_its_reply() -> None:
    row = map_row(Conversation(messages=[Message(role="user", content="Hello?")]))
    assert placed_text(row, "reply") == ""
    assert placed_text(row, "prompt") == "Hello?"


def test_both_answers_of_a_preference_are_shown() -> None:
    row = map_row(
        Preference(prompt=[Message(role="user", content="Q")], chosen="good", rejected="bad", scores={"a": 1})
    )
    assert [(turn.role, turn.text) for turn in row.turns] == [("user", "Q"), ("chosen", "good"), ("rejected", "bad")]
    assert row.metadata == {"scores": {"a": 1}}


def test_a_thumb_down_is_among_the_metadata_and_a_document_is_one_turn() -> None:
    row = map_row(Labelled(prompt=[Message(role="user", content="Q")], reply="A", desirable=False))
    assert row.metadata["desirable"] is False
    assert map_row(Document(text="A long story.")).turns[0].role == "document"


def test_tool_calls_are_shown_as_json() -> None:
    call = {"function": {"name": "weather", "arguments": "{}"}}
    row = map_row(Conversation(messages=[Message(role="assistant", tool_calls=[call])]))
    assert [(turn.role, "weather" in turn.text) for turn in row.turns] == [("tool call", True)]


def test_an_excluded_row_shows_its_conversation_with_the_reason() -> None:
    row = map_row(Excluded(reason="rouge_l", detail="0.82 to row 4", where="x:9", conversation=TALK))
    assert (row.reason, row.detail, row.source) == ("rouge_l", "0.82 to row 4", "talk.jsonl:3")
    assert placed_text(row, "reply") == "On its way."


def test_an_excluded_row_that_is_no_conversation_is_shown_as_found() -> None:
    row = map_row(Excluded(reason="bad_row", where="x.jsonl:2", raw={"a": [1, "ü"]}))
    assert [(turn.role, turn.text) for turn in row.turns] == [("row as found", '{"a": [1, "ü"]}')]
    assert map_row(Excluded(reason="bad_row", where="x.jsonl:2")).turns == ()
