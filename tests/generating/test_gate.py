"""Every parsed row is kept, or rejected with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.novelty import RougeNoveltyIndex
from tunesmith.generating.examples import Example, ReplyStyle, example_of
from tunesmith.generating.gate import Gate
from tunesmith.generating.parsing import Broken, Row
from tunesmith.protocols import GenerationContext
from tunesmith.types import Completion, Conversation, Excluded, Message, Task, TeacherRequest


class Client:
    identity = "someone"

    async def ask(self, request: TeacherRequest) -> Completion:
        raise AssertionError("the gate asks nobody")


def conversation(asked: str, answered: str, system: str | None = None) -> Conversation:
    messages = [Message(role="system", content=system)] if system else []
    messages += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
    return Conversation(messages=messages, split="train")


def example(asked: str, answered: str) -> Example:
    found = example_of(conversation(asked, answered))
    assert found is not None
    return found


def judge(
    pieces: list[Any], *, seeds: tuple[Example, ...] = (), wanted: int = 9, asked_for: int = 9, **task: Any
) -> tuple[list[Conversation], list[Excluded]]:
    kept: list[Conversation] = []
    rejected: list[Excluded] = []
    novelty = RougeNoveltyIndex()
    for seed in seeds:
        novelty.add(seed.input)
    ctx = GenerationContext(Task(**task), [], Client(), novelty, 1, kept.append, rejected.append)
    gate = Gate(ctx, seeds, wanted=wanted, max_similarity=0.7, generator="self_instruct")
    gate.judge(pieces, asked_for=asked_for, request=3, system_prompt="Be kind.", origin="o", split="train", metadata={})
    return kept, rejected


def test_a_good_row_becomes_a_conversation_with_its_lineage() -> None:
    kept, rejected = judge([Row(" How do I fix a flat tyre? ", "Patch it. ")])
    assert rejected == []
    assert [(m.role, m.content) for m in kept[0].messages] == [
        ("system", "Be kind."),
        ("user", "How do I fix a flat tyre?"),
        ("assistant", "Patch it."),
    ]
    assert (kept[0].source, kept[0].origin, kept[0].split) == ("self_instruct:someone", "o", "train")
    assert kept[0].metadata == {"request": 3}


SCHEMA = {"type": "object", "required": ["x"], "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("piece", "reason", "task"),
    [
        (Row("", "x"), "empty", {}),
        (Row("x", "  "), "empty", {}),
        (Row("...", "x"), "empty", {}),
        (Row("what", "<output>"), "empty", {}),
        (Row("what", None), "empty", {}),
        (Row("Hello  there", "hello there"), "echo", {}),
        (Row("Who are you?", "As an AI language model, I have no feelings."), "refusal", {}),
        (Row("Do it", "I'm sorry, but I can't assist with that request."), "refusal", {}),
        (Row("你好吗", "作为一个AI语言模型，我没有感情。"), "refusal", {}),
        (Row("what", "no json"), "schema", {"output_schema": SCHEMA}),
        (Row("what", {"x": "1"}), "schema", {"output_schema": SCHEMA}),
        (Row("please fix my broken bike", "Sure."), "rouge_l", {}),
        (Row("please fix my broken bike now", "Sure."), "rouge_l", {}),
        (Row("please fix my broken bike", "ok"), "duplicate", {}),
        (Broken("bad_json", "why", "{"), "bad_json", {}),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(piece: Any, reason: str, task: dict[str, Any]) -> None:
    seed = Example("please fix my broken bike", "ok", conversation("please fix my broken bike", "ok", "Be kind."))
    kept, rejected = judge([piece], seeds=(seed,), **task)
    assert kept == []
    assert [row.reason for row in rejected] == [reason]
    assert rejected[0].detail
    assert rejected[0].where == "request 3, row 0"


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but that bike is sold out.", "I can't find order 7; could you check it?"]
)
def test_an_apology_is_no_refusal(answer: str) -> None:
    kept, _ = judge([Row("Is it there?", answer)])
    assert len(kept) == 1


def test_a_row_too_near_to_an_accepted_one_names_it() -> None:
    kept, rejected = judge([Row("my front wheel is bent", "a"), Row("my front wheel is bent badly", "b")])
    assert len(kept) == 1
    assert "my front wheel is bent" in rejected[0].detail
    assert rejected[0].detail.startswith("ROUGE-L F1 0.909 > 0.7")


def test_rows_beyond_what_was_asked_for_are_surplus() -> None:
    pieces = [Row(f"{word} {word}x {word}y", "ok then") for word in ("apple", "berry", "cedar", "daisy")]
    kept, rejected = judge(pieces, asked_for=3)
    assert (len(kept), [row.reason for row in rejected]) == (3, ["surplus"])
    kept, rejected = judge(pieces, wanted=2)
    assert (len(kept), [row.reason for row in rejected]) == (2, ["surplus", "surplus"])


@pytest.mark.parametrize(
    "written",
    [
        '{"b": 1, "a": "ä"}',
        '{"b":1,"a":"ä"}',
        json.dumps({"b": 1, "a": "ä"}, indent=2, ensure_ascii=False),
    ],
)
def test_json_replies_are_written_like_the_seeds(written: str) -> None:
    style = ReplyStyle([example("q", written)])
    assert style.write({"a": "ä", "b": 1}) == written
    assert style.write('{"a": "ä", "b": 1}') == written
    assert style.write("plain text") == "plain text"


def test_json_inside_a_seed_is_shown_as_json_and_text_as_text() -> None:
    assert example("q", '{"x": 1}').line() == '{"input": "q", "output": {"x": 1}}'
    assert example("q", "[1]").line() == '{"input": "q", "output": "[1]"}'


def test_a_seed_is_the_first_exchange_or_nothing() -> None:
    two = Conversation(
        messages=[
            Message(role="system", content="s"),
            *(Message(role=role, content=f"{role}{n}") for n in (1, 2) for role in ("user", "assistant")),
        ]
    )
    found = example_of(two)
    assert found is not None
    assert (found.input, found.output) == ("user1", "assistant1")
    assert example_of(Conversation(messages=[Message(role="user", content="only")])) is None
    assert example_of(conversation(" ", "x")) is None
