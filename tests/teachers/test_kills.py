"""kill -9 at 50 random moments, and a disk that fills up: nothing finished is paid twice, nothing lost."""

from __future__ import annotations

import asyncio
import errno
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import orjson
import pytest

from teachers.fake_openai import say, serving
from teachers.test_ledger import CountingTeacher, client_of, request
from tunesmith.errors import StoreError
from tunesmith.protocols import Price
from tunesmith.teachers.ledger import Ledger
from tunesmith.types import Completion

NUM_REQUESTS = 400
CONCURRENCY = 16

VICTIMS = f"""
import asyncio, os, signal, sys, time
from pathlib import Path
from tunesmith.protocols import Price
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.teachers.openai import Endpoint, OpenAITeacher
from tunesmith.types import Message, SamplingParams, TeacherRequest

async def ask_all(url, path):
    teacher = OpenAITeacher(model="m", endpoints=[Endpoint(url, None, Price(1.0, 2.0))], concurrency={CONCURRENCY},
        timeout_seconds=10, max_retries=3, requests_per_minute=None, tokens_per_minute=None, notify=lambda sentence: None)
    ledger = Ledger(path)
    client = LedgerClient(teacher, ledger, concurrency={CONCURRENCY}, budget_usd=10.0, max_requests=None, where="r")
    requests = [TeacherRequest(messages=(Message(role="user", content=str(n)),), sampling=SamplingParams(max_tokens=40))
        for n in range({NUM_REQUESTS})]
    await asyncio.gather(*(client.ask(request) for request in requests))
    await client.aclose()
    ledger.close()

url, path = sys.argv[1], Path(sys.argv[2])
for line in sys.stdin:
    seconds = float(line)
    child = os.fork()
    if child == 0:
        asyncio.run(ask_all(url, path))
        os._exit(0)
    if seconds > 0:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def answered(path: Path) -> set[str]:
    """Contents of the requests whose answers are whole in the file."""
    if not path.exists():
        return set()
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    entries = [orjson.loads(line) for line in lines]
    return {entry["request"]["messages"][0]["content"] for entry in entries if entry["event"] == "answer"}


@pytest.mark.e2e
def test_fifty_kills_at_random_moments_pay_no_finished_answer_twice_and_lose_none(tmp_path: Path) -> None:
    rng, path = random.Random(11), tmp_path / "answers.jsonl"
    num_killed, on_file = 0, set()
    with serving(
        answer=lambda body: say(body["messages"][0]["content"] * 50), delay=lambda body: rng.uniform(0.002, 0.06)
    ) as fake:
        command = [sys.executable, "-c", textwrap.dedent(VICTIMS), fake.base_url, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def run_for(seconds: float) -> int:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
                return int(process.stdout.readline())

            for _ in range(50):
                asked_before = len(fake.asked)
                num_killed += run_for(rng.uniform(0.01, 0.12)) == -9
                asked = {body["messages"][0]["content"] for body in fake.asked[asked_before:]}
                assert not asked & on_file, "an answer that was on file is never asked for again"
                now = answered(path)
                assert on_file <= now, "no answer gets lost"
                on_file = now
            assert run_for(0) == 0
            process.stdin.close()
    assert num_killed >= 40
    assert answered(path) == {str(n) for n in range(NUM_REQUESTS)}
    ledger = Ledger(path)
    assert ledger.num_damaged == 0
    assert len(fake.asked) <= NUM_REQUESTS + num_killed * CONCURRENCY
    assert ledger.spent_usd == pytest.approx(NUM_REQUESTS * Price(1.0, 2.0).cost(100, 20) + ledger.lost_usd)
    assert 0 < ledger.lost_usd <= ledger.num_lost * Price(1.0, 2.0).cost(len("399") + 16, 40)
    assert len(fake.billed_tokens) <= NUM_REQUESTS + ledger.num_lost, "what a kill cost is on the books"


class FullDisk:
    """Stands in for the stream of a log: writes until `room_bytes` are used; more once the reserve is gone."""

    def __init__(self, stream: Any, room_bytes: int, reserve: Path) -> None:
        self._stream, self._room, self._reserve = stream, room_bytes, reserve

    def write(self, data: bytes) -> int:
        if self._stream.tell() + len(data) > self._room and self._reserve.exists():
            self._stream.write(data[: len(data) // 2])  # part of it fits, as on a real disk
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def test_answers_in_flight_when_the_disk_fills_up_go_into_the_room_kept_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    teacher, ledger = CountingTeacher(Price(1.0, 1.0), delay=lambda text: 0.02), Ledger(path)
    client = client_of(teacher, ledger, concurrency=8, budget_usd=1.0)
    reserve = tmp_path / "scratch" / "answers_room"
    assert reserve.stat().st_size == 8 * 16384
    ledger._log._stream = FullDisk(ledger._log._stream, 9000, reserve)  # type: ignore[assignment]
    try:
        asked = [asyncio.create_task(client.ask(request(str(n)))) for n in range(200)]
        with pytest.raises(StoreError, match="disk is full"):
            await asyncio.gather(*asked)
    finally:
        await client.aclose()
        ledger.close()
    answers = [task.result() for task in asked if not task.cancelled() and task.exception() is None]
    assert all(isinstance(answer, Completion) for answer in answers)
    assert 8 < len(teacher.asked) < 200
    reopened = Ledger(path)
    assert (len(reopened.keys), reopened.num_damaged, reopened.num_lost) == (len(teacher.asked), 0, 0)
    assert reopened.spent_usd == pytest.approx(teacher.billed_usd)
    assert not reserve.exists()


async def test_a_request_that_no_file_can_hold_is_refused_before_it_is_paid_for(tmp_path: Path) -> None:
    teacher, ledger = CountingTeacher(), Ledger(tmp_path / "answers.jsonl")
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        await client_of(teacher, ledger).ask(request("half a pair: \ud83d"))
    assert teacher.asked == []
