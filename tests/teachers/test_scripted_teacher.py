"""The scripted teacher: the same answers whatever the order of arrival."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import DataError, RecipeError
from tunesmith.protocols import Price
from tunesmith.teachers.scripted import ScriptedTeacher
from tunesmith.types import Message, SamplingParams, TeacherRequest

FREE = Price(0, 0)


def request(text: str, number: int = 0) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message(role="user", content=text),), sampling=SamplingParams(), sample_index=number
    )


def teacher_of(tmp_path: Path, *lines: str, price: Price = FREE) -> ScriptedTeacher:
    script = tmp_path / "script.jsonl"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ScriptedTeacher(script, price=price, where="recipe.generate.teacher")


async def test_numbered_requests_get_their_line_in_any_order_and_any_process(tmp_path: Path) -> None:
    lines = ['{"text": "zero"}', '{"text": "one"}', '{"text": "two"}']
    first, second = teacher_of(tmp_path, *lines), teacher_of(tmp_path, *lines)
    forward = [(await first.complete(request("x", n))).text for n in (0, 1, 2)]
    backward = [(await second.complete(request("x", n))).text for n in (2, 1, 0, 1)]
    assert forward == ["zero", "one", "two"]
    assert backward == ["two", "one", "zero", "one"]


async def test_different_requests_without_numbers_take_the_lines_in_turn(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, '{"text": "zero"}', '{"text": "one"}')
    texts = [(await teacher.complete(request(text))).text for text in ("a", "b", "a")]
    assert texts == ["zero", "one", "zero"]


async def test_a_matching_line_goes_first_and_serves_often(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, '{"text": "in order"}', '{"match": "bike.*broken", "text": "matched"}')
    texts = [(await teacher.complete(request(text, n))).text for n, text in enumerate(["bike\nbroken"] * 3)]
    assert texts == ["matched"] * 3
    assert (await teacher.complete(request("car", 0))).text == "in order"


async def test_running_out_is_an_error_that_says_so(tmp_path: Path) -> None:
    completion = await teacher_of(tmp_path, '{"text": "only"}').complete(request("x", 1))
    assert completion.finish_reason == "error"
    assert "script has run out: it has 1 lines in order" in (completion.error or "")


async def test_a_line_may_fail_wait_and_bill(tmp_path: Path) -> None:
    teacher = teacher_of(
        tmp_path,
        '{"error": "HTTP 500"}',
        '{"text": "ok", "delay_seconds": 0.01, "finish_reason": "length", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}',
        price=Price(1e6, 2e6),
    )
    failed, answered = await teacher.complete(request("x", 0)), await teacher.complete(request("x", 1))
    assert (failed.finish_reason, failed.error) == ("error", "HTTP 500")
    assert (answered.finish_reason, answered.cost_usd) == ("length", 7 + 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "script.jsonl:2: this line is not JSON"),
        ("[]", "script.jsonl:2: line: "),
        ('{"txet": "typo"}', "script.jsonl:2: txet: "),
        ('{"match": "x"}', "a line has either `text` or `error`"),
        ('{"match": "(", "text": "x"}', "`match` is no regular expression"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        teacher_of(tmp_path, '{"text": "fine"}', line)
    assert message in str(caught.value)


def test_an_empty_or_missing_script_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        teacher_of(tmp_path, "")
    with pytest.raises(RecipeError, match="cannot be read"):
        ScriptedTeacher(tmp_path / "none.jsonl", price=Price(0, 0), where="recipe.generate.teacher")


async def test_log_probabilities_of_a_line_are_given_to_those_who_ask(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path, '{"match": "x", "text": "2", "top_logprobs": [{"2": -0.5, "3": -1}]}')
    asked = request("x")
    wanted = await teacher.complete(asked.model_copy(update={"sampling": SamplingParams(top_logprobs=5)}))
    assert wanted.top_logprobs == [{"2": -0.5, "3": -1.0}]
    assert (await teacher.complete(asked)).top_logprobs is None
