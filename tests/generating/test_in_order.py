"""Requests in flight, answers in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable

import pytest

from tunesmith.errors import BudgetExceeded, TeacherError
from tunesmith.generating.in_order import Patience, results_in_order
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest


class Client:
    identity = "c"

    def __init__(self, stop_at: int = 10**9) -> None:
        self.begun: list[int] = []
        self.out = self.most_out = 0
        self._stop_at = stop_at

    async def ask(self, request: TeacherRequest) -> Completion:
        number = request.sample_index
        if number >= self._stop_at:
            raise BudgetExceeded("enough")
        self.begun.append(number)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            await asyncio.sleep(random.random() / 200)
        finally:
            self.out -= 1
        return Completion(text=str(number))


def requests(count: int) -> list[TeacherRequest]:
    message = (Message(role="user", content="x"),)
    return [TeacherRequest(messages=message, sampling=SamplingParams(), sample_index=n) for n in range(count)]


def answers(client: Client, may_begin: Callable[[int], bool], **options: int) -> AsyncGenerator[Completion]:
    asked = requests(options.pop("count", 50))
    return results_in_order(asked, client.ask, may_begin, **{"concurrency": 8, **options})


async def test_answers_come_in_the_order_of_the_requests_with_many_in_flight() -> None:
    client = Client()
    found = [c.text async for c in answers(client, lambda in_flight: in_flight < 8)]
    assert found == [str(number) for number in range(50)]
    assert client.begun == list(range(50))
    assert client.most_out == 8


async def test_no_request_is_begun_that_could_turn_out_to_be_needless() -> None:
    client, kept = Client(), list[int]()

    def needed(in_flight: int) -> bool:
        return in_flight * 5 < 23 - len(kept)

    async for _ in answers(client, needed):
        kept += [0, 0]
    assert len(kept) >= 23
    assert len(client.begun) == 12


async def test_a_hard_stop_ends_after_the_answers_before_it() -> None:
    client = Client(stop_at=7)
    found = [c.text async for c in answers(client, lambda in_flight: in_flight < 20)]
    assert found == [str(number) for number in range(7)]


async def test_a_client_of_any_width_is_kept_busy_while_the_first_answer_is_late() -> None:
    gate = asyncio.Event()

    class Wide(Client):
        async def ask(self, request: TeacherRequest) -> Completion:
            if request.sample_index == 0:
                await gate.wait()
            if len(self.begun) == 5998:
                gate.set()
            return await super().ask(request)

    client = Wide()
    found = [c.text async for c in answers(client, lambda in_flight: True, concurrency=2000, count=6000)]
    assert found == [str(number) for number in range(6000)]
    assert client.begun[-1] == 0, "5,999 others were begun before the first one was answered"


async def test_leaving_early_leaves_nothing_running() -> None:
    client = Client()
    coming = answers(client, lambda in_flight: in_flight < 8)
    async for _ in coming:
        break
    await coming.aclose()
    assert client.out == 0


def test_patience_ends_after_too_many_failures_or_unreadable_answers_in_a_row() -> None:
    patience = Patience(2, where="recipe.generate")
    patience.failed("a")
    patience.failed("b")
    with pytest.raises(TeacherError, match="3 requests failed; the last one: c"):
        patience.failed("c")
    patience = Patience(2, where="recipe.generate")
    for num_rows in (0, 0, 1, 0, 0):
        patience.read(num_rows, "text")
    with pytest.raises(TeacherError, match=r"last 3 answers.*'bla bla'"):
        patience.read(0, "bla\nbla")
