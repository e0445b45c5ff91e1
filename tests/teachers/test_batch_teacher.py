"""The batch backend: one file out, answers by key, and a batch that outlives its process is found again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import tunesmith.teachers.batch as batch_module
from teachers.fake_batches import FakeBatches, serve_batches
from teachers.fake_openai import say
from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.batch import BatchTeacher
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.teachers.openai import Endpoint
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest

KEY = "sk-canary-4711"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "GATHER_SECONDS", 0.02)
    monkeypatch.setattr(batch_module, "FIRST_POLL_SECONDS", 0.02)
    monkeypatch.setattr(batch_module, "LONGEST_POLL_SECONDS", 0.05)


def request(text: str, **sampling: Any) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message(role="user", content=text),), sampling=SamplingParams(max_tokens=50, **sampling)
    )


def echo(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return 200, say(body["messages"][-1]["content"].upper())


def client_at(fake: FakeBatches, path: Path, notes: list[str] | None = None) -> tuple[LedgerClient, Ledger]:
    teacher = BatchTeacher(
        model="gpt-test",
        endpoint=Endpoint(fake.base_url, KEY, Price(1.0, 2.0)),
        timeout_seconds=5,
        max_retries=3,
        notify=(notes if notes is not None else []).append,
    )
    ledger = Ledger(path)
    return LedgerClient(teacher, ledger, concurrency=1000, budget_usd=1.0, max_requests=None, where="recipe"), ledger


async def ask_all(fake: FakeBatches, path: Path, texts: list[str]) -> tuple[list[Completion], float]:
    client, ledger = client_at(fake, path)
    try:
        answers = await asyncio.gather(*(client.ask(request(text)) for text in texts))
        return list(answers), client.spent_usd
    finally:
        await client.aclose()
        ledger.close()


async def test_requests_that_are_asked_together_travel_in_one_batch_and_each_gets_its_own_answer(
    tmp_path: Path,
) -> None:
    texts = [f"text {number}" for number in range(50)]
    async with serve_batches(answer=echo) as fake:
        answers, spent = await ask_all(fake, tmp_path / "a.jsonl", texts)
    assert [answer.text for answer in answers] == [text.upper() for text in texts]
    assert len(fake.batches) == 1
    assert spent == pytest.approx(50 * (100 * 1.0 + 20 * 2.0) / 1e6)
    assert json.loads(fake.files["file-0"].splitlines()[0])["url"] == "/v1/chat/completions"


async def test_a_batch_that_was_out_when_the_process_ended_is_taken_up_and_not_paid_again(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.jsonl", ["a", "b", "c"]
    async with serve_batches(answer=echo, release=False) as fake:
        client, ledger = client_at(fake, path)
        tasks = [asyncio.create_task(client.ask(request(text))) for text in texts]
        while not fake.batches:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await client.aclose()
        ledger.close()
        fake.batches += [{"id": f"batch_{n}", "status": "completed", "metadata": None} for n in range(1, 6)]
        fake.release = True
        assert Ledger(path).num_lost == 0
        assert Ledger(path).submitted_usd > 0
        answers, spent = await ask_all(fake, path, texts)
        assert len([batch for batch in fake.batches if batch["metadata"]]) == 1
    assert [answer.text for answer in answers] == ["A", "B", "C"]
    assert fake.num_billed == 3
    assert spent == pytest.approx(3 * 140 / 1e6)
    assert Ledger(path).submitted_usd == 0


async def test_a_batch_that_was_noted_but_never_made_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    async with serve_batches(answer=echo) as fake:
        client, ledger = client_at(fake, path)
        ledger.sent(request("a").key(client.identity), 0.001, "a-name-no-batch-has")
        await client.aclose()
        ledger.close()
        answers, spent = await ask_all(fake, path, ["a"])
    assert answers[0].text == "A"
    assert (fake.num_billed, spent) == (1, pytest.approx(140 / 1e6))


async def test_a_creation_whose_answer_was_lost_does_not_make_a_second_batch(tmp_path: Path) -> None:
    async with serve_batches(answer=echo, create_breaks=1) as fake:
        answers, _ = await ask_all(fake, tmp_path / "a.jsonl", ["a", "b"])
    assert [answer.text for answer in answers] == ["A", "B"]
    assert len(fake.batches) == 1


async def test_what_an_expired_batch_left_open_goes_out_again_and_what_it_answered_does_not(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "answer": echo,
        "ends_as": lambda number: "expired" if number == 0 else "completed",
        "unanswered": lambda batch, line: batch == 0 and line % 2 == 1,
    }
    async with serve_batches(**changes) as fake:
        answers, spent = await ask_all(fake, tmp_path / "a.jsonl", ["a", "b", "c", "d"])
    assert [answer.text for answer in answers] == ["A", "B", "C", "D"]
    assert (len(fake.batches), fake.num_billed) == (2, 4)
    assert spent == pytest.approx(4 * 140 / 1e6)


async def test_a_request_that_the_endpoint_refuses_is_data_and_the_others_are_answered(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["messages"][-1]["content"] == "bad":
            return 400, {"error": {"message": f"too long, {KEY}"}}
        return echo(body)

    async with serve_batches(answer=answer) as fake:
        answers, _ = await ask_all(fake, tmp_path / "a.jsonl", ["good", "bad"])
    assert (answers[0].text, answers[1].error) == ("GOOD", "HTTP 400: too long, [api key]")
    assert len(fake.batches) == 1


async def test_a_parameter_that_is_refused_is_left_out_in_a_second_batch(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "max_tokens" in body:
            return 400, {"error": {"message": "use 'max_completion_tokens' instead of 'max_tokens'"}}
        return echo(body)

    async with serve_batches(answer=answer) as fake:
        answers, _ = await ask_all(fake, tmp_path / "a.jsonl", ["a", "b", "c"])
    assert [answer.text for answer in answers] == ["A", "B", "C"]
    assert len(fake.batches) == 2


async def test_a_batch_that_is_refused_as_a_whole_stops_with_the_endpoints_words_and_costs_nothing(
    tmp_path: Path,
) -> None:
    async with serve_batches(ends_as=lambda number: "failed") as fake:
        with pytest.raises(TeacherError, match="no such model"):
            await ask_all(fake, tmp_path / "a.jsonl", ["a"])
    assert Ledger(tmp_path / "a.jsonl").spent_usd == 0


async def test_everything_a_batch_said_and_log_probabilities_are_kept(tmp_path: Path) -> None:
    top = [{"token": "A", "logprob": -0.25}]

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        choice = {"finish_reason": "stop", "message": {"content": "A", "reasoning": "because"}}
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return 200, say("A", choices=[choice], model="m-2026-11-01")

    async with serve_batches(answer=answer) as fake:
        client, ledger = client_at(fake, tmp_path / "a.jsonl")
        completion = await client.ask(request("a", top_logprobs=3))
        await client.aclose()
        ledger.close()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    raw = next(line["raw"] for line in lines if line["event"] == "answer")
    assert (raw["model"], raw["choices"][0]["message"]["reasoning"]) == ("m-2026-11-01", "because")
    assert completion.top_logprobs == [{"A": -0.25}]


async def test_the_header_of_a_user_turn_is_refused_and_no_batch_goes_out(tmp_path: Path) -> None:
    async with serve_batches(answer=echo) as fake:
        client, ledger = client_at(fake, tmp_path / "a.jsonl")
        completion = await client.ask(request("a").model_copy(update={"prefix_only": True}))
        await client.aclose()
        ledger.close()
    assert "prefix_only" in (completion.error or "")
    assert len(fake.batches) == 0
