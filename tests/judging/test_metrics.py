"""What an answer is worth: values worked out by hand, and what counts as wrong, as unscored, as JSON."""

from __future__ import annotations

import json

import pytest

from tunesmith.errors import RecipeError
from tunesmith.judging import METRICS
from tunesmith.judging.fields import Target, choices, find_target
from tunesmith.judging.metrics import MISSING, metric_names, parse_json, same, score_answer, show
from tunesmith.types import Completion

SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"type": "string", "enum": ["refund", "status"]},
        "urgent": {"type": "boolean"},
        "order": {"type": ["string", "null"], "pattern": "^SC-[0-9]{5}$"},
        "amount": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mood": {"$ref": "#/$defs/Mood"},
        "kind": {"const": "ticket"},
        "title": {"type": "string"},
        "reply": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string", "enum": ["a"]}},
    },
    "required": ["intent", "reply"],
    "$defs": {"Mood": {"enum": ["calm", "angry"], "type": "string"}},
}
REFERENCE = {"intent": "refund", "order": "SC-12345", "reply": "We will refund your order today."}
TARGET = Target(True, SCHEMA, ("intent", "order"), "reply")


def scores(answer: str, target: Target = TARGET, reference: object = REFERENCE) -> dict[str, float | None]:
    text = reference if isinstance(reference, str) else json.dumps(reference)
    return {name: score.value for name, score in score_answer(Completion(text=answer), text, target).items()}


def test_auto_takes_restricted_fields_as_exact_and_the_longest_text_as_the_text_field() -> None:
    target = find_target(SCHEMA, [{"title": "Hi", "reply": "A longer sentence."}, "no object"], "auto", "auto")
    assert target.exact_fields == ("intent", "urgent", "order", "amount", "mood", "kind")
    assert target.text_field == "reply"
    assert find_target(SCHEMA, [{"title": "A long title", "reply": "No."}], "auto", "auto").text_field == "title"
    assert target.is_json


def test_without_a_schema_an_answer_is_plain_text_unless_fields_are_named() -> None:
    assert find_target(None, [REFERENCE], "auto", "auto") == Target(False)
    assert find_target(None, [REFERENCE], ("intent",), "reply") == Target(True, None, ("intent",), "reply")
    assert metric_names(Target(False)) == ["exact_match", "rouge_l"]


def test_a_field_nobody_knows_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="'intend'") as caught:
        find_target(SCHEMA, [], ("intend",), "auto")
    assert caught.value.hint == "did you mean 'intent'?"
    with pytest.raises(RecipeError) as caught:
        find_target(SCHEMA, [], "auto", "zzz")
    assert caught.value.where == "recipe.evaluate.text_field"


def test_a_schema_that_refers_to_itself_does_not_hang() -> None:
    loop = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"enum": [1]}]}},
    }
    assert find_target(loop, [], "auto", "auto").exact_fields == ("a",)


def test_choices_are_the_enum_in_the_schemas_order_null_included() -> None:
    nullable = {"properties": {"x": {"anyOf": [{"enum": ["b", "a"]}, {"type": "null"}]}, "y": {"type": "number"}}}
    assert choices("x", nullable) == ["b", "a", None]
    assert choices("y", nullable) == choices("none", nullable) == choices("x", None) == []
    assert choices("mood", SCHEMA) == ["calm", "angry"]


def test_a_right_answer_is_right_in_everything() -> None:
    assert scores(json.dumps(REFERENCE)) == {
        "json_valid": 1, "schema_valid": 1, "field.intent": 1, "field.order": 1, "all_fields": 1, "rouge_l": 1,
    }  # fmt: skip


def test_a_half_right_answer_scores_by_hand() -> None:
    answer = {"intent": "status", "order": "SC-12345", "reply": "We will refund it."}
    found = scores(json.dumps(answer))
    # 3 common words of 4 and 6: precision 3/4, recall 3/6, F1 = 0.6
    assert found == {
        "json_valid": 1, "schema_valid": 1, "field.intent": 0, "field.order": 1, "all_fields": 0, "rouge_l": 0.6,
    }  # fmt: skip


def test_prose_is_wrong_in_every_field_and_judged_by_what_it_says() -> None:
    found = score_answer(Completion(text="We will refund your order today."), json.dumps(REFERENCE), TARGET)
    assert {name: score.value for name, score in found.items()} == {
        "json_valid": 0, "schema_valid": 0, "field.intent": 0, "field.order": 0, "all_fields": 0, "rouge_l": 1,
    }  # fmt: skip
    assert found["field.intent"].explanation == "not JSON"
    assert "whole answer" in found["rouge_l"].explanation


def test_an_answer_that_never_came_is_unscored_and_never_zero() -> None:
    failed = Completion(text="", finish_reason="error", error="HTTP 500")
    found = score_answer(failed, json.dumps(REFERENCE), TARGET)
    assert set(found) == {"json_valid", "schema_valid", "field.intent", "field.order", "all_fields", "rouge_l"}
    assert {(score.value, score.explanation) for score in found.values()} == {(None, "no answer: HTTP 500")}


def test_a_field_the_reference_lacks_is_unscored_and_leaves_the_others_alone() -> None:
    found = scores('{"intent": "refund", "order": null, "reply": "x"}', reference={"intent": "refund"})
    assert (found["field.intent"], found["field.order"], found["all_fields"], found["rouge_l"]) == (1, None, 1, None)
    assert scores("{}", reference="prose")["all_fields"] is None


def test_missing_and_null_are_told_apart() -> None:
    reference = {**REFERENCE, "order": None}
    assert scores('{"intent": "refund", "order": null, "reply": "x"}', reference=reference)["field.order"] == 1
    assert scores('{"intent": "refund", "reply": "x"}', reference=reference)["field.order"] == 0


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{}", True), (' {"a": 1}\n', True), ('"text"', True), ("null", True), ("", False), ("{} {}", False),
        ('```json\n{}\n```', False), ("{'a': 1}", False), ('{"a": 1,}', False), ("NaN", False),
        ('{"a": Infinity}', False), ("[" * 100_000, False), ("[" * 500 + "]" * 500, False), ("9" * 5000, False),
        ('{"a": "\\ud800"}', True),
    ],
)  # fmt: skip
def test_only_one_whole_json_value_is_valid(text: str, valid: bool) -> None:
    assert (parse_json(text) is not MISSING) == valid
    assert scores(text)["json_valid"] == float(valid)


def test_json_equality_knows_types() -> None:
    assert same(1, 1.0) and same({"a": [1, None]}, {"a": [1.0, None]}) and same("x", "x")
    assert not same(True, 1) and not same(0, False) and not same("1", 1) and not same(None, False)
    assert not same([1], [1, 2]) and not same({"a": 1}, {"b": 1}) and not same([], {})


def test_the_schemas_complaint_names_field_value_and_rule() -> None:
    found = score_answer(Completion(text='{"intent": "chat", "reply": "x"}'), json.dumps(REFERENCE), TARGET)
    assert found["schema_valid"].explanation == 'intent: "chat" breaks enum ["refund", "status"]'
    assert found["field.intent"].explanation == '"chat", expected "refund"'
    assert found["all_fields"].explanation == "wrong: intent, order"


def test_a_shown_value_is_short_and_can_be_written() -> None:
    assert len(show("x" * 1000)) == 80
    assert show("\ud800").encode() == b'"?"'


def test_plain_text_is_scored_whole() -> None:
    found = scores(" Paris ", Target(False), "Paris")
    assert found == {"exact_match": 1, "rouge_l": 1}
    assert scores("It is Paris", Target(False), "Paris") == {"exact_match": 0, "rouge_l": 0.5}


def test_every_metric_of_the_registry_can_be_loaded_and_answers_for_itself() -> None:
    for name in METRICS:
        assert METRICS.load(name)("{}", "{}", TARGET)
