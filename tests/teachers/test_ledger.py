"""Paid once, written down as it arrives, never past a hard stop."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import BudgetExceeded, TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest, Usage

FREE = Price(0, 0)


class CountingTeacher:
    """Answers the last message in capitals; remembers what was asked and how many requests were out at once."""

    identity = "counting"

    def __init__(self, price: Price = FREE, delay: Callable[[str], float] = lambda text: 0.0) -> None:
        self.price = price
        self.asked: list[str] = []
        self.out = self.most_out = 0
        self.billed_usd = 0.0
        self.faults: dict[str, Exception | Completion] = {}
        self._delay = delay

    async def complete(self, request: TeacherRequest) -> Completion:
        text = request.messages[-1].content
        self.asked.append(text)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            await asyncio.sleep(self._delay(text))
        finally:
            self.out -= 1
        fault = self.faults.get(text)
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return fault
        usage = Usage(prompt_tokens=10, completion_tokens=random.randint(1, request.sampling.max_tokens))
        cost = self.price.cost(usage.prompt_tokens, usage.completion_tokens)
        self.billed_usd += cost
        return Completion(text=text.upper(), usage=usage, cost_usd=cost)

    def count_prompt_tokens(self, request: TeacherRequest) -> int:
        return 10

    async def aclose(self) -> None:
        return None


def request(text: str, number: int = 0) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message(role="user", content=text),), sampling=SamplingParams(max_tokens=40), sample_index=number
    )


def client_of(teacher: CountingTeacher, ledger: Ledger, **changes) -> LedgerClient:
    options = {"concurrency": 4, "budget_usd": None, "max_requests": None, "where": "recipe.generate"}
    return LedgerClient(teacher, ledger, **{**options, **changes})


async def test_the_same_request_is_paid_once_in_one_process_and_in_the_next(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    client = client_of(teacher, ledger)
    first = await client.ask(request("a"))
    again = await client.ask(request("a"))
    ledger.close()
    reopened = Ledger(tmp_path / "answers.jsonl")
    later = await client_of(teacher, reopened).ask(request("a"))
    reopened.close()
    assert first.text == "A"
    assert first == again == later
    assert teacher.asked == ["a"]


async def test_another_sample_index_or_teacher_is_another_request(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    client = client_of(teacher, ledger)
    await client.ask(request("a", 0))
    await client.ask(request("a", 1))
    other = CountingTeacher()
    other.identity = "another"
    await client_of(other, ledger).ask(request("a", 0))
    assert (len(teacher.asked), len(other.asked)) == (2, 1)


async def test_equal_requests_in_flight_share_one_call_even_when_one_asker_leaves(tmp_path: Path) -> None:
    teacher = CountingTeacher(delay=lambda text: 0.05)
    client = client_of(teacher, Ledger(tmp_path / "answers.jsonl"))
    askers = [asyncio.create_task(client.ask(request("a"))) for _ in range(5)]
    await asyncio.sleep(0.01)
    askers[0].cancel()
    answers = await asyncio.gather(*askers, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.text for answer in answers[1:] if isinstance(answer, Completion)] == ["A"] * 4
    assert teacher.asked == ["a"]


async def test_no_more_calls_than_the_concurrency_are_out_and_they_begin_in_order(tmp_path: Path) -> None:
    teacher = CountingTeacher(delay=lambda text: random.random() / 50)
    client = client_of(teacher, Ledger(tmp_path / "answers.jsonl"), concurrency=3)
    names = [f"{number:02d}" for number in range(20)]
    await asyncio.gather(*(client.ask(request(name)) for name in names))
    assert teacher.most_out == 3
    assert teacher.asked == names


@pytest.mark.parametrize("rng_seed", range(8))
async def test_spend_never_passes_the_cap_with_many_in_flight(tmp_path: Path, rng_seed: int) -> None:
    random.seed(rng_seed)
    price = Price(1000.0, 5000.0)
    worst = price.cost(10, 40)
    cap = worst * random.uniform(3, 30)
    teacher = CountingTeacher(price, delay=lambda text: random.random() / 100)
    client = client_of(teacher, Ledger(tmp_path / "answers.jsonl"), concurrency=50, budget_usd=cap)
    answers = await asyncio.gather(*(client.ask(request(str(n))) for n in range(200)), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    assert teacher.billed_usd <= cap
    assert client.spent_usd == pytest.approx(teacher.billed_usd)
    assert cap - client.spent_usd < worst, "stopped although the next request would have fitted"
    assert len(refused) + len(teacher.asked) == 200
    assert teacher.asked == [str(n) for n in range(len(teacher.asked))], "a prefix of the requests was paid"
    assert client.stopped is not None
    assert client.stopped.where == "recipe.generate.budget_usd"


async def test_max_requests_is_a_hard_stop_that_counts_a_repeated_request_once(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    await client_of(teacher, ledger, max_requests=3).ask(request("a"))
    client = client_of(teacher, ledger, max_requests=3)
    for name in "abac":
        await client.ask(request(name))
    with pytest.raises(BudgetExceeded, match="3 requests are asked"):
        await client.ask(request("d"))
    assert teacher.asked == ["a", "b", "c"]


async def test_a_failed_request_is_on_file_but_asked_again_by_the_next_process(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    teacher.faults["a"] = Completion(text="", finish_reason="error", error="HTTP 503")
    client = client_of(teacher, ledger)
    assert (await client.ask(request("a"))).error == "HTTP 503"
    assert (await client.ask(request("a"))).error == "HTTP 503"
    ledger.close()
    teacher.faults.clear()
    reopened = Ledger(tmp_path / "answers.jsonl")
    assert (await client_of(teacher, reopened).ask(request("a"))).text == "A"
    assert teacher.asked == ["a", "a"]


async def test_a_failed_request_that_was_billed_is_not_paid_again(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    teacher.faults["a"] = Completion(text="", finish_reason="error", error="content_filter", cost_usd=0.5)
    await client_of(teacher, ledger).ask(request("a"))
    reopened = Ledger(tmp_path / "answers.jsonl")
    client = client_of(teacher, reopened)
    assert (await client.ask(request("a"))).error == "content_filter"
    assert client.spent_usd == 0.5
    assert teacher.asked == ["a"]


async def test_a_teacher_that_cannot_be_used_stops_the_asker_and_costs_nothing(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(Price(1, 1)), Ledger(tmp_path / "answers.jsonl")
    teacher.faults["a"] = TeacherError("wrong key")
    client = client_of(teacher, ledger, budget_usd=1.0)
    with pytest.raises(TeacherError, match="wrong key"):
        await client.ask(request("a"))
    ledger.close()
    assert Ledger(tmp_path / "answers.jsonl").spent_usd == 0


async def test_a_torn_last_line_is_cut_off_and_only_that_answer_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    teacher, ledger = CountingTeacher(), Ledger(path)
    for name in "abc":
        await client_of(teacher, ledger).ask(request(name))
    ledger.close()
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole), 37):
        path.write_bytes(whole[:cut])
        torn = Ledger(path)
        client = client_of(CountingTeacher(), torn)
        assert len(torn.keys) == 2
        await client.ask(request("c"))
        torn.close()
        assert len(Ledger(path).keys) == 3


async def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    ledger = Ledger(path)
    for name in "abc":
        await client_of(CountingTeacher(), ledger).ask(request(name))
    ledger.close()
    whole, rng = path.read_bytes(), random.Random(1)
    for _ in range(200):
        place = rng.randrange(len(whole) - 1)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(7)
        path.write_bytes(bytes(flipped))
        damaged = Ledger(path)
        assert damaged.num_damaged >= 1 or len(damaged.keys) == 2
        assert len(damaged.keys) <= 2
        damaged.close()


async def test_a_request_in_flight_when_the_process_died_counts_against_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    price = Price(1000.0, 5000.0)
    teacher = CountingTeacher(price, delay=lambda text: 10.0)
    client = client_of(teacher, Ledger(path), budget_usd=1.0)
    task = asyncio.create_task(client.ask(request("a")))
    await asyncio.sleep(0.02)
    for _ in range(3):  # the process dies; every later one sees the same
        reopened = Ledger(path)
        assert reopened.num_lost == 1
        assert reopened.spent_usd == pytest.approx(price.cost(10, 40))
        reopened.close()
    task.cancel()
    await client.aclose()
    answered = client_of(CountingTeacher(price), Ledger(path), budget_usd=1.0)
    completion = await answered.ask(request("a"))
    assert Ledger(path).spent_usd == pytest.approx(price.cost(10, 40) + completion.cost_usd)


async def test_finishing_leaves_the_asked_answers_in_order_without_times(tmp_path: Path) -> None:
    async def one(folder: Path, names: str) -> bytes:
        teacher = CountingTeacher(delay=lambda text: random.random() / 50)
        ledger = Ledger(folder / "answers.jsonl")
        random.seed(3)
        teacher.faults = {n: Completion(text=n * 3, usage=Usage(completion_tokens=1)) for n in names}
        await asyncio.gather(*(client_of(teacher, ledger).ask(request(n)) for n in "xa"))
        client = client_of(teacher, ledger)
        await asyncio.gather(*(client.ask(request(n)) for n in "dacb"))
        ledger.finish(client.asked_keys)
        ledger.close()
        return (folder / "answers.jsonl").read_bytes()

    first, second = await one(tmp_path / "1", "abcdx"), await one(tmp_path / "2", "abcdx")
    assert first == second
    assert b'"time"' not in first
    assert [line.split(b'"text":"')[1][:1] for line in first.splitlines()] == [b"d", b"a", b"c", b"b"]
    assert len((tmp_path / "1/logs/unused_answers.jsonl").read_bytes().splitlines()) == 1
    assert len(Ledger(tmp_path / "1/answers.jsonl").keys) == 4


def test_a_full_disk_is_a_store_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    code = f"""
import asyncio, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_ledger import CountingTeacher, client_of, request
from tunesmith.errors import StoreError
from tunesmith.teachers.ledger import Ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
ledger = Ledger(Path({str(tmp_path)!r}) / "answers.jsonl")
async def main():
    client = client_of(CountingTeacher(), ledger)
    for number in range(100):
        try:
            await client.ask(request(str(number)))
        except StoreError as error:
            print(number, error.where)
            return
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number = int(done.stdout.split()[0])
    assert number >= 3
    reopened = Ledger(tmp_path / "answers.jsonl")
    assert (len(reopened.keys), reopened.num_damaged) == (number, 0)
    assert (tmp_path / "answers.jsonl").read_bytes().endswith(b"\n")
