"""The endpoint teacher against a real server on a socket, with every fault the protocol knows."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from teachers.fake_openai import FakeOpenAI, Fault, say, serve
from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.budget import Budget
from tunesmith.teachers.call import Call, current_call
from tunesmith.teachers.openai import Endpoint, OpenAITeacher
from tunesmith.types import Message, SamplingParams, TeacherRequest

KEY = "sk-canary+4711/secret"


def request(text: str = "Hello?", **sampling: Any) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message(role="user", content=text),), sampling=SamplingParams(max_tokens=50, **sampling)
    )


def teacher_at(fake: FakeOpenAI | str, **changes: Any) -> OpenAITeacher:
    options: dict[str, Any] = {
        "model": "gpt-test",
        "endpoints": [Endpoint(fake if isinstance(fake, str) else fake.base_url, KEY, Price(1.0, 2.0))],
        "concurrency": 4,
        "timeout_seconds": 5.0,
        "max_retries": 3,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "notify": lambda sentence: None,
    }
    return OpenAITeacher(**{**options, **changes})


async def ask(fake: FakeOpenAI | str, asked: TeacherRequest | None = None, **changes: Any):
    teacher = teacher_at(fake, **changes)
    try:
        return await teacher.complete(asked or request())
    finally:
        await teacher.aclose()


async def test_an_answer_comes_with_usage_and_its_cost() -> None:
    async with serve(answer=lambda body: say("Hi there")) as fake:
        completion = await ask(fake, request("Hello?", temperature=0.5, top_p=0.9, rng_seed=7, stop=("END",)))
    assert completion.text == "Hi there"
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (100, 20)
    assert completion.cost_usd == pytest.approx((100 * 1.0 + 20 * 2.0) / 1e6)
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert fake.asked[0] == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": "Hello?"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
    }


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 408),
        Fault("status", 409),
        Fault("status", 429),
        Fault("status", 500),
        Fault("status", 502, "<html>bad gateway</html>"),
        Fault("status", 503),
        Fault("reset"),
        Fault("timeout"),
        Fault("truncated"),
        Fault("body", body=""),
        Fault("body", body="[]"),
        Fault("body", body='{"choices": []}'),
        Fault("body", body='{"error": {"message": "overloaded"}}'),
        Fault("body", body='{"choices": [{"message": {"content": 7}}]}'),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.body[:12]}",
)
async def test_a_passing_fault_is_tried_again_and_then_answered(fault: Fault) -> None:
    async with serve([fault]) as fake:
        completion = await ask(fake, timeout_seconds=0.4)
    assert completion.text == "hello"
    assert fake.num_asked == 2


async def test_tries_are_bounded_and_the_last_fault_is_data() -> None:
    async with serve([Fault("status", 503)] * 9) as fake:
        completion = await ask(fake, max_retries=2)
    assert fake.num_asked == 3
    assert completion.finish_reason == "error"
    assert completion.error == "HTTP 503: scripted 503 (tried 3 times)"
    assert completion.cost_usd == 0


async def test_retry_after_in_seconds_is_obeyed() -> None:
    async with serve([Fault("status", 429, headers={"Retry-After": "0.7"})]) as fake:
        await ask(fake)
    assert 0.7 <= fake.times[1] - fake.times[0] < 2


async def test_retry_after_as_a_date_is_obeyed() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    async with serve([Fault("status", 503, headers={"Retry-After": date})]) as fake:
        await ask(fake)
    assert 0.9 <= fake.times[1] - fake.times[0] < 3


async def test_a_pause_of_hours_ends_the_request_at_once() -> None:
    async with serve([Fault("status", 429, headers={"Retry-After": "86400"})]) as fake:
        completion = await asyncio.wait_for(ask(fake), 3)
    assert completion.finish_reason == "error"
    assert fake.num_asked == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
async def test_what_every_request_would_meet_stops_at_once_with_a_hint(status: int) -> None:
    async with serve([Fault("status", status)]) as fake:
        with pytest.raises(TeacherError, match=f"HTTP {status}: scripted {status}") as caught:
            await ask(fake)
    assert caught.value.hint
    assert fake.num_asked == 1


async def test_a_used_up_quota_is_not_waited_for() -> None:
    body = json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    async with serve([Fault("status", 429, body)]) as fake:
        with pytest.raises(TeacherError, match="quota is used up"):
            await ask(fake)
    assert fake.num_asked == 1


async def test_a_redirect_is_reported_and_the_key_is_not_sent_on() -> None:
    async with serve([Fault("status", 307, headers={"Location": "https://elsewhere.example/v1?token=abc"})]) as fake:
        with pytest.raises(TeacherError, match=r"redirects to https://elsewhere\.example/v1") as caught:
            await ask(fake)
    assert "abc" not in str(caught.value)


async def test_a_web_page_instead_of_json_names_the_base_url() -> None:
    async with serve([Fault("body", body="<!doctype html><title>Welcome</title>")]) as fake:
        with pytest.raises(TeacherError, match="web page") as caught:
            await ask(fake)
    assert "/v1" in (caught.value.hint or "")


async def test_a_refused_connection_is_an_error_that_names_the_endpoint() -> None:
    with pytest.raises(TeacherError, match="cannot reach the endpoint after 2 tries") as caught:
        await ask("http://127.0.0.1:9/v1", max_retries=1)
    assert caught.value.where == "http://127.0.0.1:9/v1/chat/completions"


async def test_a_bad_request_is_the_fault_of_one_request() -> None:
    async with serve([Fault("status", 400, '{"error": {"message": "context length exceeded"}}')]) as fake:
        completion = await ask(fake)
    assert completion.finish_reason == "error"
    assert completion.error == "HTTP 400: context length exceeded"
    assert fake.num_asked == 1


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (say(None), "", "stop"),
        (say("half an ans", choices=[{"finish_reason": "length", "message": {"content": "half"}}]), "half", "length"),
        (say("", choices=[{"finish_reason": "content_filter", "message": {"content": "bad"}}]), "bad", "error"),
        (say("", choices=[{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]), "ab", "stop"),
        (say("", choices=[{"message": {"content": None, "refusal": "No."}}]), "No.", "stop"),
        (say("", choices=[{"finish_reason": "tool_calls", "message": {"content": None}}]), "", "tool_calls"),
    ],
)
async def test_unusual_answers_are_data(answer: dict[str, Any], text: str, reason: str) -> None:
    async with serve(answer=lambda body: answer) as fake:
        completion = await ask(fake)
    assert (completion.text, completion.finish_reason) == (text, reason)
    assert completion.cost_usd > 0
    assert fake.num_asked == 1


async def test_half_a_surrogate_pair_does_not_spoil_the_answer() -> None:
    async with serve([Fault("body", body=json.dumps(say("cut \ud83d")))]) as fake:
        completion = await ask(fake)
    assert completion.text == "cut ?"


async def test_a_schema_is_passed_and_left_out_once_where_the_endpoint_refuses_it() -> None:
    schema = {"type": "object"}
    refusal = Fault("status", 400, '{"error": {"message": "response_format is not supported"}}')
    async with serve([refusal]) as fake:
        teacher = teacher_at(fake)
        first = await teacher.complete(request(json_schema=schema))
        await teacher.complete(request("again", json_schema=schema))
        await teacher.aclose()
    assert first.text == "hello"
    assert fake.asked[0]["response_format"]["json_schema"]["schema"] == schema
    assert "response_format" not in fake.asked[1]
    assert "response_format" not in fake.asked[2]
    assert fake.num_asked == 3


async def test_models_that_want_max_completion_tokens_get_it() -> None:
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    async with serve([Fault("status", 400, json.dumps({"error": {"message": message}}))]) as fake:
        completion = await ask(fake)
    assert completion.text == "hello"
    assert fake.asked[1]["max_completion_tokens"] == 50
    assert "max_tokens" not in fake.asked[1]


async def test_a_temperature_that_is_refused_is_not_changed_in_silence() -> None:
    fault = Fault("status", 400, '{"error": {"message": "temperature must be 1"}}')
    async with serve([fault, None, fault]) as fake:
        neutral = await ask(fake, request(temperature=1.0))
        changed = await ask(fake, request(temperature=0.3))
    assert neutral.text == "hello"
    assert changed.error == "HTTP 400: temperature must be 1"


async def test_missing_usage_is_estimated_from_above_and_flagged() -> None:
    async with serve(answer=lambda body: say("four", usage=None)) as fake:
        completion = await ask(fake)
    assert completion.usage.estimated
    assert completion.usage.prompt_tokens == len(b"Hello?") + 16
    assert completion.usage.completion_tokens == 4
    assert completion.cost_usd == pytest.approx((22 * 1.0 + 4 * 2.0) / 1e6)


async def test_no_more_requests_than_the_concurrency_are_in_flight() -> None:
    async with serve(delay=lambda body: 0.05) as fake:
        teacher = teacher_at(fake, concurrency=3)
        await asyncio.gather(*(teacher.complete(request(str(number))) for number in range(12)))
        await teacher.aclose()
    assert fake.most_in_flight == 3
    assert fake.num_asked == 12


@pytest.mark.parametrize("echo", [KEY, base64.b64encode(KEY.encode()).decode(), "sk-canary%2B4711%2Fsecret"])
async def test_the_key_never_comes_back(echo: str) -> None:
    async with serve([Fault("status", 400, json.dumps({"error": {"message": f"bad key {echo}"}}))]) as fake:
        failed = await ask(fake)
    async with serve([Fault("body", body=f"not json {echo}")] * 9) as fake:
        broken = await ask(fake)
    async with serve(answer=lambda body: say(f"you sent {echo}")) as fake:
        answered = await ask(fake)
        teacher = teacher_at(fake)
    async with serve([Fault("status", 401, f"Bearer {echo}")]) as fake:
        with pytest.raises(TeacherError) as caught:
            await ask(fake)
    everything = f"{failed} {broken} {answered} {teacher!r} {teacher.identity} {caught.value} {caught.value.hint}"
    assert echo not in everything
    assert answered.text == "you sent [api key]"


def test_secrets_in_the_address_stay_out_of_the_identity() -> None:
    teacher = teacher_at("https://user:hidden@host.example:8443/v1/?token=hidden")
    assert teacher.identity == "openai:gpt-test@https://host.example:8443/v1"


async def test_a_try_that_may_have_been_billed_is_counted_and_stops_at_the_budget() -> None:
    worst = Price(1.0, 2.0).cost(len(b"Hello?") + 16, 50)
    budget = Budget(worst * 2.5, where="recipe.generate.budget_usd")
    marks: list[float] = []
    kept: list[bytes] = []

    def mark(usd: float, batch: str | None) -> None:
        marks.append(usd)

    async with serve([Fault("truncated")] * 5) as fake:
        reservation = await budget.reserve(worst)
        current_call.set(Call("key", reservation, mark=mark, keep=kept.append))
        completion = await ask(fake, max_retries=4)
        budget.settle(reservation, completion.cost_usd)
    assert fake.num_asked == 2
    assert completion.cost_usd == pytest.approx(2 * worst)
    assert "budget ends here" in (completion.error or "")
    assert budget.spent_usd <= worst * 2.5
    assert marks == pytest.approx([worst, worst])
    assert kept and kept[0].startswith(b'{"id": "x"')
