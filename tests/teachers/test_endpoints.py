"""Several keys and endpoints for one model, rate limits, and what is kept of every answer."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import orjson
import pytest

import tunesmith.teachers.lanes as lanes_module
from teachers.fake_openai import FakeOpenAI, Fault, say, serve
from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.recipe import Runtime, TeacherSection
from tunesmith.stages.teacher import concurrency_of
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.teachers.openai import Endpoint, OpenAITeacher
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest

PRICE = Price(1.0, 2.0)


def request(text: str) -> TeacherRequest:
    return TeacherRequest(messages=(Message(role="user", content=text),), sampling=SamplingParams(max_tokens=50))


def teacher_of(*endpoints: Endpoint, notes: list[str] | None = None, **changes: Any) -> OpenAITeacher:
    options: dict[str, Any] = {
        "model": "m",
        "endpoints": endpoints,
        "concurrency": 4,
        "timeout_seconds": 5.0,
        "max_retries": 3,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "notify": (notes if notes is not None else []).append,
    }
    return OpenAITeacher(**{**options, **changes})


def client_of(teacher: OpenAITeacher, path: Path, **changes: Any) -> tuple[LedgerClient, Ledger]:
    ledger = Ledger(path)
    options: dict[str, Any] = {"concurrency": 8, "budget_usd": 1.0, "max_requests": None, "where": "recipe.generate"}
    return LedgerClient(teacher, ledger, **{**options, **changes}), ledger


async def ask_many(teacher: OpenAITeacher, number: int) -> list[Completion]:
    try:
        return list(await asyncio.gather(*(teacher.complete(request(str(n))) for n in range(number))))
    finally:
        await teacher.aclose()


async def test_requests_spread_over_two_endpoints_by_load() -> None:
    async with serve(delay=lambda body: 0.02) as quick, serve(delay=lambda body: 0.2) as slow:
        teacher = teacher_of(Endpoint(quick.base_url, None, PRICE), Endpoint(slow.base_url, None, PRICE))
        answers = await ask_many(teacher, 60)
    assert {answer.text for answer in answers} == {"hello"}
    assert quick.num_asked + slow.num_asked == 60
    assert slow.most_in_flight <= 4
    assert quick.num_asked > 2 * slow.num_asked > 0


async def test_a_key_that_is_refused_is_given_up_and_the_other_one_goes_on() -> None:
    notes: list[str] = []
    async with serve([Fault("status", 401)]) as fake:
        good, bad = Endpoint(fake.base_url, "sk-good", PRICE), Endpoint(fake.base_url, "sk-secret-bad", PRICE)
        teacher = teacher_of(bad, good, notes=notes, concurrency=1)
        answers = await ask_many(teacher, 20)
    assert [answer.text for answer in answers] == ["hello"] * 20
    keys = [headers["Authorization"] for headers in fake.headers]
    assert len(set(keys[2:])) == 1, "the refused key is not used again"
    assert any("is not used any more" in note for note in notes)
    assert "sk-" not in "".join(notes) + repr(teacher)


async def test_the_last_key_that_is_refused_stops_everybody() -> None:
    async with serve([Fault("status", 401)] * 9) as fake:
        teacher = teacher_of(Endpoint(fake.base_url, "a", PRICE), Endpoint(fake.base_url, "b", PRICE), concurrency=1)
        answers = await asyncio.gather(*(teacher.complete(request(str(n))) for n in range(6)), return_exceptions=True)
        await teacher.aclose()
    assert all(isinstance(answer, TeacherError) for answer in answers)
    assert fake.num_asked == 2


async def test_an_endpoint_that_fails_rests_while_another_works_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_module, "_FIRST_REST_SECONDS", 0.1)
    notes: list[str] = []
    async with serve([Fault("status", 503)] * 6) as failing, serve(delay=lambda body: 0.02) as working:
        teacher = teacher_of(
            Endpoint(failing.base_url, None, PRICE), Endpoint(working.base_url, None, PRICE), notes=notes, max_retries=9
        )
        answers = await ask_many(teacher, 80)
    assert {answer.text for answer in answers} == {"hello"}
    assert any("rests for" in note for note in notes)
    assert failing.num_asked > 6, "tried again after its rest"
    assert len(failing.billed_tokens) + len(working.billed_tokens) == 80


async def test_a_stated_limit_of_requests_per_minute_is_kept() -> None:
    async with serve() as fake:
        await ask_many(teacher_of(Endpoint(fake.base_url, None, PRICE), requests_per_minute=600), 15)
    between = fake.times[-1] - fake.times[10]
    assert between >= 3 / 10, "10 a second"


async def test_an_endpoint_that_says_nothing_is_left_is_waited_for() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "20s",  # 3 a second
    }
    async with serve([Fault("status", 429, headers=headers)]) as fake:
        teacher = teacher_of(Endpoint(fake.base_url, None, PRICE), concurrency=1)
        await ask_many(teacher, 3)
    assert fake.num_asked == 4
    assert all(later - earlier > 0.28 for earlier, later in zip(fake.times[1:], fake.times[2:], strict=False))


async def test_many_random_refusals_end_with_every_answer() -> None:
    faults = [Fault("status", 429, headers={"Retry-After": "0.05"}) if n % 20 == 7 else None for n in range(400)]
    async with serve(faults, delay=lambda body: 0.01) as fake:
        teacher = teacher_of(Endpoint(fake.base_url, None, PRICE), concurrency=50)
        answers = await ask_many(teacher, 400)
        assert teacher.lanes.all[0].window.size == 50
    assert sum(answer.text == "hello" for answer in answers) == 400


@pytest.fixture
def many_sockets() -> None:
    """Both ends of a thousand connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2500:
        pytest.skip(f"a process may open {hard} files here, and this needs 2,500")
    if soft != resource.RLIM_INFINITY and soft < 2500:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2500, hard))


@pytest.mark.usefixtures("many_sockets")
async def test_spend_stays_within_the_cap_with_a_thousand_in_flight_at_a_real_endpoint(tmp_path: Path) -> None:
    worst = PRICE.cost(len(b"0000") + 16, 50)
    cap = 1200 * worst  # room for a thousand reservations at once

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        used = int(body["messages"][-1]["content"]) % 50 + 1
        return say("x", usage={"prompt_tokens": 20, "completion_tokens": used})

    def delay(body: dict[str, Any]) -> float:
        return 2.5 if int(body["messages"][-1]["content"]) < 1000 else 0.02

    async with serve(answer=answer, delay=delay) as fake:
        teacher = teacher_of(Endpoint(fake.base_url, None, PRICE), concurrency=1000)
        client, ledger = client_of(teacher, tmp_path / "a.jsonl", concurrency=1000, budget_usd=cap)
        asked = (client.ask(request(f"{n:04}")) for n in range(3000))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await client.aclose()
        ledger.close()
    assert fake.most_in_flight >= 500  # of a thousand; a busy machine opens connections more slowly than it answers
    billed = sum(PRICE.cost(prompt, completion) for prompt, completion in fake.billed_tokens)
    assert sum(isinstance(one, Completion) for one in answers) == len(fake.billed_tokens)
    assert billed <= cap
    assert billed == pytest.approx(client.spent_usd) == pytest.approx(Ledger(tmp_path / "a.jsonl").spent_usd)
    assert cap - billed < 2 * worst, "and the money was used"


async def test_everything_an_endpoint_said_is_kept_but_not_in_the_finished_file(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "four", "reasoning_content": "2 + 2"}
    said = say("", choices=[{"finish_reason": "stop", "message": message}], model="m-2026-11-01")
    async with serve([Fault("body", body='{"half": ')], answer=lambda body: said) as fake:
        client, ledger = client_of(teacher_of(Endpoint(fake.base_url, None, PRICE)), tmp_path / "answers.jsonl")
        await client.ask(request("2 + 2?"))
        lines = [orjson.loads(line) for line in (tmp_path / "answers.jsonl").read_bytes().splitlines()]
        ledger.finish(client.asked_keys)
        await client.aclose()
        ledger.close()
    events = [line["event"] for line in lines]
    assert events == ["sent", "broken", "sent", "answer"]
    assert lines[1]["text"] == '{"half": '
    assert lines[3]["raw"]["model"] == "m-2026-11-01"
    assert lines[3]["raw"]["choices"][0]["message"] == {"role": "assistant", "reasoning_content": "2 + 2"}
    assert b"m-2026" not in (tmp_path / "answers.jsonl").read_bytes()
    assert b"m-2026" in (tmp_path / "logs/answer_times.jsonl").read_bytes()
    assert b"half" in (tmp_path / "logs/broken_answers.jsonl").read_bytes()


async def test_an_answer_that_does_not_parse_is_repaired_once_and_both_are_on_file(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return say('{"a": 1}' if len(body["messages"]) == 3 else '{"a": 1')

    def fault(completion: Completion) -> str | None:
        try:
            json.loads(completion.text)
        except ValueError as error:
            return f"it is no JSON ({error})"
        return None

    async def once(fake: FakeOpenAI) -> tuple[Completion, ...]:
        client, ledger = client_of(teacher_of(Endpoint(fake.base_url, None, PRICE)), tmp_path / "a.jsonl")
        try:
            return await client.ask_repaired(request("write JSON"), fault)
        finally:
            await client.aclose()
            ledger.close()

    async with serve(answer=answer) as fake:
        first, again = await once(fake), await once(fake)
    assert [completion.text for completion in first] == ['{"a": 1', '{"a": 1}']
    assert first == again
    assert fake.num_asked == 2
    assert fake.asked[1]["messages"][1] == {"role": "assistant", "content": '{"a": 1'}
    assert "it is no JSON" in fake.asked[1]["messages"][2]["content"]


async def test_keys_reach_no_file_no_note_and_no_repr(tmp_path: Path) -> None:
    secrets = ['sk-canary-one/"x\\', "sk-canary-two"]
    notes: list[str] = []

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return say(f"you sent {secrets}", system_fingerprint=secrets[0], extra={"headers": secrets})

    faults = [Fault("status", 401, f"bad key {secrets[0]}"), Fault("body", body=f"broken {secrets[1]}")]
    async with serve(faults, answer=answer) as fake:
        endpoints = [Endpoint(fake.base_url, secret, PRICE) for secret in secrets]
        teacher = teacher_of(*endpoints, notes=notes)
        client, ledger = client_of(teacher, tmp_path / "answers.jsonl")
        answers = [await client.ask(request(str(n))) for n in range(3)]
        before = (tmp_path / "answers.jsonl").read_bytes()
        ledger.finish(client.asked_keys)
        await client.aclose()
        ledger.close()
    shown = f"{answers} {notes} {teacher!r} {endpoints!r} {teacher.lanes.all!r} {client!r}"
    on_disk = before + b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "canary" not in shown
    assert b"canary" not in on_disk
    assert fake.num_asked == 5


async def test_a_refused_request_leaves_its_place_to_another_one_while_it_waits(tmp_path: Path) -> None:
    runtime = Runtime(teacher_concurrency=1)
    at_hand = concurrency_of(TeacherSection(model="m"), runtime)
    async with serve([Fault("status", 429, headers={"Retry-After": "0.4"})]) as fake:
        teacher = teacher_of(Endpoint(fake.base_url, None, PRICE), concurrency=1)
        client, ledger = client_of(teacher, tmp_path / "a.jsonl", concurrency=at_hand)
        await asyncio.gather(*(client.ask(request(text)) for text in "abc"))
        await client.aclose()
        ledger.close()
    assert [body["messages"][0]["content"] for body in fake.asked] == ["a", "b", "c", "a"]
    assert fake.most_in_flight == 1


async def test_log_probabilities_are_on_file(tmp_path: Path) -> None:
    top = [{"token": "5", "logprob": -0.5}, {"token": " 4", "logprob": -1.5}]
    choice = {"finish_reason": "stop", "message": {"content": "5"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    asked = request("how good?").model_copy(update={"sampling": SamplingParams(max_tokens=4, top_logprobs=2)})
    answers: list[Completion] = []
    async with serve(answer=lambda body: say("5", choices=[choice])) as fake:
        for _ in range(2):
            client, ledger = client_of(teacher_of(Endpoint(fake.base_url, None, PRICE)), tmp_path / "a.jsonl")
            answers.append(await client.ask(asked))
            await client.aclose()
            ledger.close()
    assert answers[0] == answers[1]
    assert answers[1].top_logprobs == [{"5": -0.5, " 4": -1.5}]
    assert fake.num_asked == 1
