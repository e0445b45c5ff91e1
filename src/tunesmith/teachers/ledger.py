"""Every answer of a teacher, written down as it arrives, and the client that pays for none of them twice.

Owns `answers.jsonl` and the two hard stops (money, number of requests). Knows neither endpoints nor what is asked for.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tunesmith.errors import BudgetExceeded, TeacherError
from tunesmith.protocols import Teacher
from tunesmith.teachers.budget import Budget, current_reservation
from tunesmith.text.jsonl import RecordLog, dump_record, write_records
from tunesmith.types import Completion, Record, TeacherRequest

_SYNC_SECONDS = 0.25
"""Answers that arrive faster than this share one fsync. A killed process loses nothing either way, since every line
is handed to the system at once; only a power cut can lose what was not synced."""


class LedgerLine(Record):
    """One line: an answer; a request that went out (`sent`, with its worst case in US dollars); or one that will get
    no answer any more (`lost`: the process died with it in flight, or it was refused, then usd is 0)."""

    key: str
    event: Literal["answer", "sent", "lost"] = "answer"
    request: TeacherRequest | None = None
    completion: Completion | None = None
    usd: float | None = None
    seconds: float | None = None  # how long the answer took
    time: float | None = None  # seconds since the epoch
    crc32: str | None = None  # of the line without this field: a damaged line is noticed and asked again

    def sealed(self) -> LedgerLine:
        """The line with its checksum."""
        bare = self.model_copy(update={"crc32": None})
        return bare.model_copy(update={"crc32": f"{zlib.crc32(dump_record(bare)):08x}"})

    def untimed(self) -> LedgerLine:
        """The line without what differs between equal runs."""
        return self.model_copy(update={"time": None, "seconds": None}).sealed()


class Ledger:
    """An append-only file of answers. One process at a time.

    Opening it drops a torn last line (the process died while writing) and damaged lines (`num_damaged`), and counts
    requests that were in flight when a process died as money that may be gone (`lost_usd`, `num_lost`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_damaged = 0
        self.num_lost = 0
        self.lost_usd = 0.0
        self._lines: dict[str, LedgerLine] = {}  # key -> its newest answer
        self._in_flight: dict[str, float] = {}  # key -> worst case in US dollars
        self._last_sync = 0.0
        self._log = RecordLog(path)
        for data in path.read_bytes().splitlines():
            self._load(data)
        for key, usd in list(self._in_flight.items()):
            self._write(LedgerLine(key=key, event="lost", usd=usd))

    @property
    def keys(self) -> set[str]:
        """Keys of all requests that were asked and came to an end, failed ones included."""
        return set(self._lines)

    @property
    def spent_usd(self) -> float:
        """Cost of every answer, and the worst case of the lost ones."""
        answers = (line.completion for line in self._lines.values())
        return sum(answer.cost_usd for answer in answers if answer is not None) + self.lost_usd

    def answer(self, key: str) -> Completion | None:
        """The answer on file. None where there is none, or where the request failed and nothing was billed: a new
        process asks again, because an outage must not be remembered for ever."""
        line = self._lines.get(key)
        answer = line.completion if line is not None else None
        if answer is None or (answer.finish_reason == "error" and not _was_billed(answer)):
            return None
        return answer

    def sent(self, key: str, usd: float) -> None:
        """Note that a request goes out which may cost up to `usd`."""
        self._write(LedgerLine(key=key, event="sent", usd=usd))

    def refused(self, key: str) -> None:
        """Note that a request which went out was turned away unbilled."""
        self._write(LedgerLine(key=key, event="lost", usd=0.0))

    def record(self, key: str, request: TeacherRequest, completion: Completion, seconds: float) -> None:
        """Write an answer down. When this returns, no kill can lose it. StoreError where it cannot be written."""
        self._write(
            LedgerLine(
                key=key,
                request=request,
                completion=completion,
                seconds=round(seconds, 3),
                time=round(time.time(), 3),
            )
        )
        now = time.monotonic()
        if now - self._last_sync >= _SYNC_SECONDS:
            self._log.sync()
            self._last_sync = now

    def finish(self, keys: Iterable[str]) -> None:
        """Leave the file as the artifact keeps it: the answers to `keys` in that order, without times, so that equal
        runs have equal bytes. The lines with their times go to logs/answer_times.jsonl, answers that nobody asked for
        to logs/unused_answers.jsonl."""
        used = {key: self._lines[key] for key in keys if key in self._lines}
        unused = [line for key, line in self._lines.items() if key not in used]
        logs = self.path.parent / "logs"
        timed = [line for line in used.values() if line.time is not None]
        if timed:
            bare = (LedgerLine(key=line.key, seconds=line.seconds, time=line.time) for line in timed)
            write_records(logs / "answer_times.jsonl", bare)
        if unused:
            write_records(logs / "unused_answers.jsonl", unused)
        self._log.close()
        write_records(self.path, [line.untimed() for line in used.values()])
        self._log = RecordLog(self.path)

    def close(self) -> None:
        """Sync and close. Closing twice is harmless."""
        try:
            self._log.sync()
        except ValueError:  # closed already
            return
        self._log.close()

    def _load(self, data: bytes) -> None:
        try:
            line = LedgerLine.model_validate_json(data)
        except ValidationError:
            self.num_damaged += 1
            return
        if line.crc32 != line.sealed().crc32:
            self.num_damaged += 1
            return
        self._take(line)

    def _write(self, line: LedgerLine) -> None:
        sealed = line.sealed()
        self._log.append(sealed)
        self._take(sealed)

    def _take(self, line: LedgerLine) -> None:
        usd = line.usd or 0.0
        if line.event == "sent":
            self._in_flight[line.key] = self._in_flight.get(line.key, 0.0) + usd
            return
        self._in_flight.pop(line.key, None)
        if line.event == "lost":
            self.lost_usd += usd
            self.num_lost += usd > 0
        else:
            self._lines[line.key] = line


class LedgerClient:
    """A teacher behind its ledger and its hard stops: the TeacherClient a generator talks to.

    Laws: a key that is on file is answered from the file; equal requests in flight at once share one call; at most
    `concurrency` calls are out at a time, begun in the order they were asked; no call begins whose worst case could
    pass the budget, or that would be request number `max_requests` + 1 (a request asked again after a kill counts once).

    `on_answer(completion)` is called once per key, when its answer is there, from the file or not.
    """

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        *,
        concurrency: int,
        budget_usd: float | None,
        max_requests: int | None,
        where: str,
        on_answer: Callable[[Completion], None] = lambda completion: None,
    ) -> None:
        """`where` is the recipe path of the section with the limits ("recipe.generate"), for messages."""
        self.identity = teacher.identity
        self.stopped: BudgetExceeded | None = None  # the hard stop that was met, None = none
        self._out_of_money = False
        self._teacher = teacher
        self._ledger = ledger
        self._budget = Budget(budget_usd, where=f"{where}.budget_usd", spent_usd=ledger.spent_usd)
        self._max_requests = max_requests
        self._where = where
        self._on_answer = on_answer
        self._slots = asyncio.Semaphore(concurrency)
        self._calls: dict[str, asyncio.Task[Completion]] = {}
        self._known = ledger.keys
        self._asked: dict[str, Completion | None] = {}  # keys in the order they were asked

    @property
    def spent_usd(self) -> float:
        """US dollars of all answers on file, and the worst case of requests whose answers a kill has lost."""
        return self._budget.spent_usd

    @property
    def cost_usd(self) -> float:
        """US dollars of the answers asked for in this process, from the file or not."""
        return sum(answer.cost_usd for answer in self._asked.values() if answer is not None)

    @property
    def asked_keys(self) -> list[str]:
        """Keys in the order they were first asked."""
        return list(self._asked)

    async def ask(self, request: TeacherRequest) -> Completion:
        """The answer, from the file where it is there. Raises BudgetExceeded at a hard stop, StoreError where the
        answer cannot be written down, TeacherError where the teacher cannot be used at all."""
        key = request.key(self.identity)
        if (answer := self._asked.setdefault(key, None)) is not None:
            return answer
        if (answer := self._ledger.answer(key)) is not None:
            return self._note(key, answer)
        call = self._calls.get(key)
        if call is None:
            self._check_number(key)
            call = asyncio.create_task(self._call(key, request))
            call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # an asker may have left
            self._calls[key] = call
        return await asyncio.shield(call)

    async def aclose(self) -> None:
        """Cancel what is in flight and close the teacher. The ledger stays open: it belongs to the caller."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._teacher.aclose()

    def _check_number(self, key: str) -> None:
        if key in self._known:
            return
        if self._max_requests is not None and len(self._known) >= self._max_requests:
            self.stopped = self.stopped or BudgetExceeded(
                f"{self._max_requests} requests are asked, which is the limit",
                where=f"{self._where}.max_requests",
                hint="raise it, or look at the rejected rows: most answers may be of no use",
            )
        if self.stopped is not None:
            raise self._stop()
        self._known.add(key)

    def _stop(self) -> BudgetExceeded:
        """The hard stop again. A new exception each time: one object would collect every traceback."""
        assert self.stopped is not None
        return BudgetExceeded(self.stopped.message, where=self.stopped.where, hint=self.stopped.hint)

    async def _call(self, key: str, request: TeacherRequest) -> Completion:
        try:
            async with self._slots:
                return self._note(key, await self._pay(key, request))
        finally:
            self._calls.pop(key, None)

    async def _pay(self, key: str, request: TeacherRequest) -> Completion:
        worst = self._teacher.price.cost(self._teacher.count_prompt_tokens(request), request.sampling.max_tokens)
        if self._out_of_money:
            raise self._stop()
        try:
            reservation = await self._budget.reserve(worst)
        except BudgetExceeded as error:
            self.stopped, self._out_of_money = error, True
            raise
        reservation.on_extend = lambda usd: self._ledger.sent(key, usd)
        current_reservation.set(reservation)
        cost = reservation.usd  # a cancelled request may have been billed
        started = time.monotonic()
        try:
            if worst > 0:
                self._ledger.sent(key, worst)
            completion = await self._teacher.complete(request)
            cost = completion.cost_usd
        except TeacherError:
            cost = 0.0  # refused: a wrong key or an unknown model is not billed
            if worst > 0:
                self._ledger.refused(key)
            raise
        finally:
            self._budget.settle(reservation, cost)
        self._ledger.record(key, request, completion, time.monotonic() - started)
        return completion

    def _note(self, key: str, completion: Completion) -> Completion:
        if self._asked.get(key) is None:
            self._asked[key] = completion
            self._on_answer(completion)
        return completion


def _was_billed(completion: Completion) -> bool:
    return completion.cost_usd > 0 or completion.usage.completion_tokens > 0
