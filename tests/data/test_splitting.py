"""Pieces fit, start with a user turn, end with an assistant turn, and lose no turn without saying so."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.splitting import split_conversation, split_messages
from tunesmith.types import Conversation, Message


def measure(lists: Sequence[list[Message]]) -> list[int]:
    """One token a word, three for each turn's marks, two for the start."""
    return [2 + sum(3 + len(message.content.split()) for message in messages) for messages in lists]


def talk(*exchanges: tuple[int, int], system: int = 0) -> list[Message]:
    """Exchanges of so many words of user and assistant; every word is different."""
    messages = [Message(role="system", content="s " * system)] if system else []
    for number, (asked, said) in enumerate(exchanges):
        messages.append(Message(role="user", content=" ".join(f"u{number}.{k}" for k in range(asked))))
        messages.append(Message(role="assistant", content=" ".join(f"a{number}.{k}" for k in range(said))))
    return messages


def test_pieces_are_filled_one_after_another_and_carry_the_system_message():
    messages = talk((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), system=4)
    pieces = split_messages(messages, 30, measure)  # 2 + 7 + 10 a pair: two pairs are 29
    assert [[m.content for m in piece[1:]] for piece in pieces.kept] == [
        [m.content for m in messages[1:5]], [m.content for m in messages[5:9]], [m.content for m in messages[9:]],
    ]  # fmt: skip
    assert all(piece[0].role == "system" for piece in pieces.kept) and pieces.left_out == []


def test_an_exchange_longer_than_the_context_is_left_out_and_named_and_the_rest_stays():
    pieces = split_messages(talk((1, 1), (1, 90), (1, 1)), 20, measure)
    assert [piece[0].content for piece in pieces.kept] == ["u0.0", "u2.0"]
    assert [out[0].content for out in pieces.left_out] == ["u1.0"]


def test_a_call_to_go_on_is_never_the_start_of_a_piece():
    messages = talk((1, 5), (1, 5), (1, 5), (1, 5))
    messages[4] = Message(role="user", content="Please continue.")
    messages[6] = Message(role="user", content="继续")
    pieces = split_messages(messages, 43, measure)
    assert [[m.content for m in piece if m.role == "user"] for piece in pieces.kept] == [
        ["u0.0"],
        ["u1.0", "Please continue.", "继续"],
    ]
    tight = split_messages(messages, 30, measure)
    assert [[m.content for m in piece if m.role == "user"] for piece in tight.kept] == [
        ["u0.0"],
        ["u1.0", "Please continue."],
    ]
    assert [out[0].content for out in tight.left_out] == ["继续"]


def test_a_question_without_an_answer_is_left_out():
    messages = [*talk((1, 1)), Message(role="user", content="and?")]
    pieces = split_messages(messages, 100, measure)
    assert pieces.kept == [messages[:2]] and pieces.left_out == [messages[2:]]


def test_pieces_keep_the_origin_of_the_whole_and_have_ids_of_their_own():
    row = Conversation(messages=talk((2, 2), (2, 2)), source="a:1", split="test", metadata={"model": "GPT-4"})
    rows, _ = split_conversation(row, 14, measure)
    assert [(r.origin, r.source, r.split) for r in rows] == [(row.id, "a:1", "test")] * 2
    assert [r.metadata for r in rows] == [{"model": "GPT-4", "piece": "1/2"}, {"model": "GPT-4", "piece": "2/2"}]
    assert len({row.id, *(r.id for r in rows)}) == 3


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(5, 80),
    st.integers(0, 6),
)
def test_whatever_the_lengths_are_pieces_fit_and_every_turn_is_in_one_place(
    exchanges: list[tuple[int, int]], limit: int, system: int
):
    messages = talk(*exchanges, system=system)
    pieces = split_messages(messages, limit, measure)
    turns = [m for m in messages if m.role != "system"]
    kept = [m for piece in pieces.kept for m in piece if m.role != "system"]
    left = [m for out in pieces.left_out for m in out]
    assert sorted(m.content for m in kept + left) == sorted(m.content for m in turns)
    assert [m for m in turns if m in kept] == kept
    for piece in pieces.kept:
        assert measure([piece])[0] <= limit
        assert piece[-1].role == "assistant" and piece[1 if system else 0].role == "user"
    whole = [n for n, pair in enumerate(exchanges) if measure([talk(pair, system=system)])[0] <= limit]
    assert len(kept) == 2 * len(whole)


def test_a_piece_keeps_the_weights_of_its_own_messages():
    messages = [Message(role=role, content="x") for role in ("system", "user", "assistant", "user", "assistant")]
    whole = Conversation(messages=messages, metadata={"weights": [0, 0, 0.5, 0, 1]})
    pieces, _ = split_conversation(whole, 3, lambda lists: [len(each) for each in lists])
    assert [piece.metadata["weights"] for piece in pieces] == [[0, 0, 0.5], [0, 0, 1]]
