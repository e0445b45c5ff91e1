"""label_first: what is drawn, what is asked, what is kept, and which contradictions are found."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from generating.workbench import FunctionClient, generate, last, seed, words
from tunesmith.errors import DataError, RecipeError
from tunesmith.generating.constraints import STRING, message_like
from tunesmith.generating.examples import example_of
from tunesmith.generating.labels import Fields, Labelled, Topics
from tunesmith.generating.prompt_files import load_prompt
from tunesmith.types import Conversation, Task, TeacherRequest

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["status", "refund"]},
        "order": {"type": ["string", "null"], "pattern": "^SC-[0-9]{5}$"},
        "reply": {"type": "string", "minLength": 4, "maxLength": 200},
    },
    "required": ["intent", "order", "reply"],
    "additionalProperties": False,
}
TASK = Task(description="Sort a customer's message.", output_schema=SCHEMA, system_prompt="Answer in JSON.")


def row(message: str, intent: str, order: str | None, reply: str) -> Conversation:
    return seed(message, json.dumps({"intent": intent, "order": order, "reply": reply}), system="Answer in JSON.")


SEEDS = [
    row("Where is sc 48213?", "status", "SC-48213", "We look for SC-48213."),
    row("any news on my parcel", "status", None, "Please send us its number."),
    row("Money back for SC-10964 please, the pump is broken.", "refund", "SC-10964", "We check SC-10964."),
    row("i want my money back", "refund", None, "Please send us your order number."),
]


def facts(request: TeacherRequest) -> dict[str, Any]:
    """The answer's facts that a request gives; a second try gives them before the answer it finds fault with."""
    order = request.messages[-3].content if "cannot be used" in last(request) else last(request)
    return json.loads(order.splitlines()[0])


def good_answer(request: TeacherRequest) -> str:
    order = facts(request)["order"]
    message = f"{words(request, 6)} {order.lower().replace('-', ' #')}" if order else words(request, 6)
    return json.dumps({"message": message, "reply": f"We look after it{' (' + order + ')' if order else ''}."})


def fields() -> Fields:
    return Fields.of(SCHEMA)


def labelled(index: int) -> Labelled:
    example = example_of(SEEDS[index])
    assert example is not None
    found = fields().take_apart(example)
    assert found is not None
    return found


def test_a_schema_is_split_into_fields_that_are_drawn_and_fields_that_are_written() -> None:
    schema = {
        "properties": {
            "kind": {"$ref": "#/$defs/kind"},
            "urgent": {"type": "boolean"},
            "stars": {"type": ["integer", "null"]},
            "id": {"type": "string", "pattern": "^A[0-9]+$"},
            "reply": {"type": "string"},
            "parts": {"type": "array"},
            "free": {},
        },
        "$defs": {"kind": {"enum": ["a", "b"]}},
    }
    found = Fields.of(schema)
    assert list(found.drawn) == ["kind", "urgent", "stars", "id"]
    assert list(found.written) == ["reply", "parts", "free"]
    assert list(found.identifiers) == ["id"]
    assert found.drawn["kind"] == {"enum": ["a", "b"]}
    assert Fields.of({"$ref": "#/$defs/x", "$defs": {"x": {"enum": [1]}}}).drawn == {}
    assert Fields.of(None) == Fields({}, {})


def test_an_identifier_that_the_message_names_gets_new_digits_and_null_stays_null() -> None:
    model = labelled(0)
    assert model.named == ("order",)
    drawn = [fields().draw(model, random.Random(n))["order"] for n in range(20)]
    assert len(set(drawn)) == 20
    assert all(value.startswith("SC-") and len(value) == 8 for value in drawn)
    assert labelled(1).named == ()
    assert fields().draw(labelled(1), random.Random(0)) == {"intent": "status", "order": None}


@pytest.mark.parametrize(
    ("message", "reply", "reason"),
    [
        ("Where is SC-12345?", "We look for SC-12345.", None),
        ("where is s c 1 2 3 4 5", "We look for it.", None),
        ("order number 12345, where", "We look for it.", None),
        ("Where is my parcel?", "We look for SC-12345.", "value_missing"),
        ("Where is SC-12354?", "We look for it.", "value_missing"),
        ("Where is SC-12345, not sc99999?", "We look for it.", "wrong_value"),
        ("Where is SC-12345?", "We look for SC-48213.", "wrong_value"),
        ("Where is SC-12345?", "We look for SC 12345.", "wrong_value"),
    ],
)
def test_a_message_names_the_drawn_identifier_and_no_other(message: str, reply: str, reason: str | None) -> None:
    found = fields().fault({"intent": "status", "order": "SC-12345"}, ("order",), message, {"reply": reply})
    assert (found[0] if found else None) == reason


def test_a_drawn_null_allows_no_identifier_but_other_numbers() -> None:
    drawn = {"intent": "status", "order": None}
    assert fields().fault(drawn, (), "Call me on 07700 900318, tracking 1SC-482131", {"reply": "We call."}) is None
    found = fields().fault(drawn, (), "It is #SC 48213", {"reply": "We look."})
    assert found == ("wrong_value", "input holds 'SC 48213', and order is None")


def test_rows_take_their_label_from_the_draw_and_their_text_from_the_teacher(tmp_path: Path) -> None:
    found = generate("label_first", good_answer, tmp_path, num_rows=8, seeds=SEEDS, task=TASK, rows_per_request=2)
    assert found.rejected == []
    answers = [json.loads(kept.reply or "") for kept in found.kept]
    assert [list(answer) for answer in answers] == [["intent", "order", "reply"]] * 8
    assert Counter((answer["intent"], answer["order"] is None) for answer in answers) == Counter(
        dict.fromkeys([("status", True), ("status", False), ("refund", True), ("refund", False)], 2)
    )
    for kept, answer in zip(found.kept, answers, strict=True):
        assert kept.messages[0].content == "Answer in JSON."
        assert kept.split == "train"
        asked = kept.messages[1].content
        assert answer["order"] is None or answer["order"].lower().replace("-", " #") in asked
        assert answer["order"] not in ("SC-48213", "SC-10964")
        like = next(one for one in SEEDS if one.id == kept.metadata["like"])
        assert json.loads(like.reply or "")["intent"] == answer["intent"]


def test_the_requests_of_an_item_begin_alike_with_seeds_of_one_class_and_show_nothing_the_teacher_wrote(
    tmp_path: Path,
) -> None:
    options = {"num_rows": 3, "rows_per_request": 3, "num_seeds_shown": 2, "constrain": True}
    found = generate("label_first", good_answer, tmp_path, seeds=SEEDS, task=TASK, **options)
    first, second, third = found.asked
    assert "Sort a customer's message." in first.messages[0].content
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    shown = [json.loads(turn.content) for turn in first.messages if turn.role == "assistant"]
    assert {tuple(one) for one in shown} == {("message", "reply")}
    assert {one["message"] for one in shown} == {"Where is sc 48213?", "any news on my parcel"}
    assert first.messages[:-1] == second.messages[:-1] == third.messages[:-1]
    assert len({last(request) for request in found.asked}) == 3
    schema = first.sampling.json_schema
    assert schema is not None
    assert list(schema["properties"]) == ["message", "reply"]
    assert schema["properties"]["message"]["maxLength"] == 200
    assert schema["properties"]["reply"] == SCHEMA["properties"]["reply"]


def test_no_more_items_are_open_than_the_teacher_answers_requests_at_a_time(tmp_path: Path) -> None:
    turns: Counter[int] = Counter()  # item -> its answers so far
    open_at_once: list[int] = []

    def answer(request: TeacherRequest) -> str:
        turns[request.sample_index] += 1
        open_at_once.append(sum(answered < 3 for answered in turns.values()))
        return good_answer(request)

    generate("label_first", answer, tmp_path, num_rows=90, seeds=SEEDS, task=TASK, rows_per_request=3)
    assert len(turns) == 30
    assert 1 < max(open_at_once) <= FunctionClient.concurrency  # how many are met at once is a matter of threads


def test_an_answer_that_cannot_be_read_is_rejected_and_the_item_goes_on(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return "sorry?" if facts(request)["intent"] == "status" else good_answer(request)

    found = generate("label_first", answer, tmp_path, num_rows=1, seeds=SEEDS, task=TASK, rows_per_request=2)
    assert found.reasons[:4] == ["unreadable"] * 4  # two rows, two tries each
    assert json.loads(found.kept[0].reply or "")["intent"] == "refund"


def test_an_answer_that_cannot_be_read_has_a_second_try(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return good_answer(request) if "cannot be used" in last(request) else "sorry?"

    found = generate("label_first", answer, tmp_path, num_rows=2, seeds=SEEDS, task=TASK, rows_per_request=2)
    assert (len(found.kept), set(found.reasons)) == (2, {"unreadable"})


def test_topic_words_are_in_few_texts_but_in_more_than_one() -> None:
    texts = [
        "The trailer squeaks, thanks",
        "Rent a TRAILER, thanks",
        "A helmet, thanks",
        "thanks",
        "我的订单什么时候到",
    ]
    topics = Topics(texts)
    assert topics.draw(texts[0], random.Random(0)) == ["trailer"]
    assert topics.draw(texts[2], random.Random(0)) == []
    assert Topics([texts[4]] * 2).draw(texts[4], random.Random(0)) == []
    many = Topics(["wheel brake chain frame"] * 2)
    drawn = {tuple(many.draw("chain wheel brake frame", random.Random(n))) for n in range(50)}
    assert len(drawn) == 6
    assert ("chain", "wheel") in drawn
    assert ("wheel", "chain") not in drawn


def test_a_message_may_be_half_as_long_again_as_the_longest_seed() -> None:
    assert message_like(["a" * 300, "b"])["maxLength"] == 450
    assert message_like(["short"])["maxLength"] == 200
    assert message_like([]) == STRING


def test_a_text_that_the_schema_cut_short_is_rejected(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        if facts(request)["intent"] == "status":
            return json.dumps({"message": words(request, 6), "reply": "on and " * 28 + "on a"})  # 200 characters
        return good_answer(request)

    found = generate(
        "label_first", answer, tmp_path, num_rows=2, seeds=[SEEDS[1], SEEDS[3]], task=TASK, rows_per_request=1
    )
    assert [row.reason for row in found.rejected] == ["cut_off", "cut_off"]
    assert found.rejected[0].detail == "reply has all the characters it may have, so it ends where the schema ends it"


def test_a_message_in_the_words_of_its_answer_is_an_echo(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        text = words(request, 9)
        return json.dumps({"message": f"{text} today", "reply": f"Sorry, {text}"})

    found = generate("label_first", answer, tmp_path, num_rows=1, seeds=[SEEDS[1]], task=TASK, max_requests=4)
    assert set(found.reasons) == {"echo"}
    assert found.rejected[0].detail == "message and answer say the same: ROUGE-L F1 0.90 > 0.50"


def test_a_larger_order_begins_with_the_rows_of_a_smaller_one(tmp_path: Path) -> None:
    small, large = (
        generate("label_first", good_answer, tmp_path, num_rows=n, seeds=SEEDS, task=TASK, rows_per_request=2)
        for n in (3, 12)
    )
    assert [row.id for row in large.kept[:3]] == [row.id for row in small.kept]
    assert len({row.id for row in large.kept}) == 12


@pytest.mark.parametrize(
    ("schema", "words_of_the_error"),
    [
        (None, "there is none"),
        ({"properties": {"reply": {"type": "string"}}}, "there is none"),
        ({"properties": {"kind": {"enum": ["a"]}, "message": {"type": "string"}}}, "'message'"),
    ],
)
def test_a_schema_without_a_field_to_draw_is_refused(
    schema: dict[str, Any] | None, words_of_the_error: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words_of_the_error):
        generate("label_first", good_answer, tmp_path, seeds=SEEDS, task=Task(output_schema=schema))


def test_seeds_without_the_drawn_fields_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="intent, order"):
        generate("label_first", good_answer, tmp_path, task=TASK)


def test_a_request_says_how_long_the_message_is_and_which_identifier_it_names(tmp_path: Path) -> None:
    found = generate(
        "label_first", good_answer, tmp_path, num_rows=4, seeds=SEEDS, task=TASK, rows_per_request=2, num_seeds_shown=1
    )
    lines = {(facts(one)["intent"], facts(one)["order"] is None): last(one).splitlines()[1] for one in found.asked}
    named = {(facts(one)["intent"], facts(one)["order"] is None): facts(one)["order"] for one in found.asked}
    assert lines == {
        ("status", False): f"The message: about 4 words, names {named['status', False]}.",
        ("status", True): "The message: about 5 words, tells no order.",
        ("refund", False): f"The message: about 9 words, has money, back in it, names {named['refund', False]}.",
        ("refund", True): "The message: about 5 words, has money, back in it, tells no order.",
    }


def test_the_seeds_shown_are_of_the_kinds_that_the_chat_writes(tmp_path: Path) -> None:
    many = [row(f"where is it, parcel {n}", "status", None, "Please send its number.") for n in range(9)]
    named = [row(f"where is SC-4821{n}", "status", f"SC-4821{n}", "We look.") for n in range(3)]
    found = generate(
        "label_first", good_answer, tmp_path, num_rows=24, seeds=many + named, task=TASK, rows_per_request=1,
        num_seeds_shown=1,
    )  # fmt: skip
    kinds = [(facts(one)["order"] is None, '"order": null' in one.messages[1].content) for one in found.asked]
    assert Counter(kinds)[True, True] == 18
    assert Counter(kinds)[False, False] == 6


def test_the_chinese_prompt_names_the_identifier_only_where_there_is_one() -> None:
    prompt = load_prompt("label_first", "zh")
    assert "其中提到 SC-1" in prompt.fill("user", {"label": "{}", "num_words": 12, "named": "SC-1"})
    assert "提" not in prompt.fill("user", {"label": "{}", "num_words": 12, "named": ""})
