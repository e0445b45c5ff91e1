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


def logprobs(*places: dict[str, float | None]) -> dict[str, Any]:
    entries = [[{"token": text, "logprob": value, "bytes": None} for text, value in place.items()] for place in places]
    return {"content": [{**entry[0], "top_logprobs": entry} for entry in entries], "refusal": None}


def say_with(found: Any, text: str = "3") -> dict[str, Any]:
    return say(text, choices=[{"finish_reason": "stop", "message": {"content": text}, "logprobs": found}])


async def test_log_probabilities_are_asked_for_where_they_are_wanted_and_read() -> None:
    async with serve(answer=lambda body: say_with(logprobs({"3": -0.1, "4": -2.5}, {".": -0.2}))) as fake:
        wanted = await ask(fake, request(top_logprobs=7))
        unwanted = await ask(fake, request())
    assert (fake.asked[0]["logprobs"], fake.asked[0]["top_logprobs"]) == (True, 7)
    assert not {"logprobs", "top_logprobs"} & fake.asked[1].keys()
    assert wanted.top_logprobs == [{"3": -0.1, "4": -2.5}, {".": -0.2}]
    assert unwanted.top_logprobs is None


@pytest.mark.parametrize(
    "found", [None, {"content": None}, {"content": []}, {"tokens": ["3"], "top_logprobs": [{"3": -0.1}]}]
)
async def test_an_endpoint_that_passes_over_the_wish_for_log_probabilities_is_noted_once(found: Any) -> None:
    notes: list[str] = []
    async with serve(answer=lambda body: say_with(found)) as fake:
        teacher = teacher_at(fake, notify=notes.append)
        answers = [await teacher.complete(request(text, top_logprobs=5)) for text in "ab"]
        await teacher.aclose()
    assert [(answer.text, answer.top_logprobs) for answer in answers] == [("3", None)] * 2
    assert notes == [f"the endpoint {fake.base_url} gives no log-probabilities: answers are read from their text alone"]


async def test_values_that_are_no_log_probability_are_left_out() -> None:
    async with serve(answer=lambda body: say_with(logprobs({"3": -0.1, "4": None}))) as fake:
        answer = await ask(fake, request(top_logprobs=5))
    assert answer.top_logprobs == [{"3": -0.1}]


async def test_an_endpoint_with_a_lower_bound_is_asked_for_fewer_and_one_without_for_none() -> None:
    bound = Fault("status", 400, '{"error": {"message": "top_logprobs must be at most 5"}}')
    never = Fault("status", 422, '{"detail": "Extra inputs are not permitted: logprobs"}')
    notes: list[str] = []
    async with serve([bound], answer=lambda body: say_with(logprobs({"3": -0.1}))) as fake:
        fewer = await ask(fake, request(top_logprobs=20), notify=notes.append)
    async with serve([never]) as other:
        none = await ask(other, request(top_logprobs=20), notify=notes.append)
    assert [body["top_logprobs"] for body in fake.asked] == [20, 5]
    assert fewer.top_logprobs == [{"3": -0.1}]
    assert "logprobs" not in other.asked[1]
    assert (none.text, none.top_logprobs) == ("hello", None)
    assert len(notes) == 2
    assert "refuses 20 log-probabilities a token and is asked for 5" in notes[0]


async def test_the_header_of_a_user_turn_is_refused_and_nothing_is_sent() -> None:
    async with serve() as fake:
        completion = await ask(fake, request().model_copy(update={"prefix_only": True}))
    assert (completion.finish_reason, fake.num_asked) == ("error", 0)
    assert "prefix_only" in (completion.error or "")


async def test_what_an_endpoint_does_not_take_is_noted_once_however_many_are_in_flight() -> None:
    notes: list[str] = []
    refusal = Fault("status", 400, '{"error": {"message": "seed is not supported"}}')
    async with serve([refusal] * 4, delay=lambda body: 0.02) as fake:
        teacher = teacher_at(fake, notify=notes.append)
        answers = await asyncio.gather(*(teacher.complete(request(text, rng_seed=1)) for text in "abcdef"))
        await teacher.aclose()
    assert [answer.text for answer in answers] == ["hello"] * 6
    assert notes == [f"the endpoint {fake.base_url} does not take `seed` and is asked without it"]


async def test_an_adaptive_start_is_small_and_grows_with_what_comes_back() -> None:
    seen: list[int] = []

    async with serve(delay=lambda body: 0.05) as fake:

        def answer(body: dict[str, Any]) -> dict[str, Any]:
            seen.append(fake.num_asked)
            return say("hello")

        fake.answer = answer
        teacher = teacher_at(fake, concurrency=None)
        await asyncio.gather(*(teacher.complete(request(str(number))) for number in range(200)))
        await teacher.aclose()
    assert seen[0] == 8, "so many were out before the first answer"
    assert fake.most_in_flight >= 16
