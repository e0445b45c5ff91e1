"""An answer of no use is asked for once more; one with some bad rows is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generating.workbench import Answer, generate, last, seed
from tunesmith.types import Message, Task, TeacherRequest

SCHEMA = {"type": "object", "properties": {"intent": {"enum": ["refund", "repair"]}}, "required": ["intent"]}
LABELLED = [seed("My chain broke, please fix it.", '{"intent": "repair"}')]


def row(asked: str, answered: Any) -> str:
    return json.dumps({"input": asked, "output": answered}, ensure_ascii=False)


def is_second_try(request: TeacherRequest) -> bool:
    return "cannot be used as it stands" in last(request)


def first_then(first: str, second: str) -> Answer:
    return lambda request: second if is_second_try(request) else first


def test_the_teacher_sees_its_answer_and_the_fault_and_both_answers_are_accounted_for(tmp_path: Path) -> None:
    script = first_then('{"input": "a", "output": ', row("Where do larks sleep?", "In a hollow of the ground."))
    found = generate("self_instruct", script, tmp_path, num_rows=1, rows_per_request=1)
    assert [one.reply for one in found.kept] == ["In a hollow of the ground."], found.rejected
    assert found.reasons == ["bad_json"]
    first, second = found.asked
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[-2] == Message(role="assistant", content='{"input": "a", "output": ')
    assert "Expecting value" in last(second)
    assert second.sample_index == first.sample_index


def test_an_answer_with_one_good_row_is_taken_as_it_is(tmp_path: Path) -> None:
    good = row("Where do larks sleep?", "In a hollow of the ground.")
    found = generate("self_instruct", lambda _: f'{{"input": "a", "output": \n{good}', tmp_path, num_rows=1)
    assert len(found.asked) == 1
    assert (len(found.kept), found.reasons) == (1, ["bad_json"])


def test_an_answer_that_was_cut_is_not_asked_for_again(tmp_path: Path) -> None:
    script = [{"text": '{"input": "a', "finish_reason": "length"}, {"text": row("Where do larks sleep?", "Below.")}]
    found = generate("self_instruct", script, tmp_path, num_rows=1, rows_per_request=1)
    assert not any(is_second_try(request) for request in found.asked)
    assert found.reasons == ["cut_off"]


def test_two_answers_of_no_use_end_there(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        return row("Where do larks sleep?", "Below.") if request.sample_index else "No rows today."

    found = generate("self_instruct", answer, tmp_path, num_rows=1, rows_per_request=1)
    assert sum(is_second_try(request) for request in found.asked) == 1
    assert found.reasons == ["unreadable", "unreadable"]
    assert len(found.kept) == 1


def test_where_the_second_try_fails_the_first_answer_stands(tmp_path: Path) -> None:
    script = [
        {"match": "cannot be used", "error": "HTTP 400"},
        {"text": "No rows today."},
        {"text": row("Where do larks sleep?", "Below.")},
    ]
    found = generate("self_instruct", script, tmp_path, num_rows=1, rows_per_request=1, max_failures=1)
    assert (len(found.kept), found.reasons) == (1, ["unreadable"])


def test_rows_that_all_break_the_schema_are_asked_for_again(tmp_path: Path) -> None:
    script = first_then(row("Give my money back", {"intent": "money"}), row("Give my money back", {"intent": "refund"}))
    task = Task(output_schema=SCHEMA)
    found = generate("self_instruct", script, tmp_path, num_rows=1, rows_per_request=1, seeds=LABELLED, task=task)
    assert [one.reply for one in found.kept] == ['{"intent": "refund"}']
    assert found.reasons == ["schema"]
    assert "'money' is not one of ['refund', 'repair']" in last(found.asked[1])


def test_a_reply_that_breaks_the_schema_is_asked_for_again(tmp_path: Path) -> None:
    def answer(request: TeacherRequest) -> str:
        if "new questions" in last(request):
            return "1. Give my money back"
        return '{"intent": "refund"}' if is_second_try(request) else "You want a refund."

    task = Task(output_schema=SCHEMA)
    found = generate("question_response", answer, tmp_path, num_rows=1, rows_per_request=1, seeds=LABELLED, task=task)
    assert [one.reply for one in found.kept] == ['{"intent": "refund"}']
    assert [turn.role for turn in found.asked[-1].messages[-3:]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("generator", "good"),
    [
        ("distill", row("Where do larks sleep?", "Below.")),
        ("personas", row("Where do larks sleep?", "Below.")),
        ("dialogue", "User: a lark?\nAssistant: Yes.\nUser: Where?\nAssistant: Below."),
        (
            "maths",
            json.dumps({"question": "3 and 4?", "solution": "3 + 4 = 7", "expression": "3 + 4", "answer": "7"}),
        ),
    ],
)
def test_every_form_has_its_second_try(tmp_path: Path, generator: str, good: str) -> None:
    task = Task(description="Know birds.", system_prompt="Be brief.")
    script = first_then("No rows today.", good)
    found = generate(generator, script, tmp_path, num_rows=1, rows_per_request=1, seeds=[], task=task)
    assert len(found.kept) == 1
    assert [is_second_try(request) for request in found.asked] == [False, True]


def test_the_documents_questions_have_a_second_try_too(tmp_path: Path) -> None:
    (tmp_path / "larks.txt").write_text("Larks sleep in a hollow of the ground.")

    def answer(request: TeacherRequest) -> str:
        if "Answer the question" in last(request):
            return "In a hollow of the ground."
        return '{"type": "fact", "question": "Where do larks sleep?"}' if is_second_try(request) else "No."

    found = generate("documents", answer, tmp_path, rows_per_request=1, files={"l.txt": tmp_path / "larks.txt"})
    assert [one.reply for one in found.kept] == ["In a hollow of the ground."], found.rejected


def test_the_second_try_speaks_the_language_of_the_prompts_and_can_be_switched_off(tmp_path: Path) -> None:
    good = row("云雀睡在哪里？", "睡在地上的小坑里。")

    def answer(request: TeacherRequest) -> str:
        return good if "你的回答无法使用" in last(request) or request.sample_index else "没有。"

    chinese = generate("self_instruct", answer, tmp_path, num_rows=1, rows_per_request=1, language="zh")
    off = generate("self_instruct", answer, tmp_path, num_rows=1, rows_per_request=1, language="zh", repair=False)
    assert [request.sample_index for request in chinese.asked] == [0, 0]
    assert [request.sample_index for request in off.asked] == [0, 1]
