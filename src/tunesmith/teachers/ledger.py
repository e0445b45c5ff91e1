"""The client that pays for no answer twice: a teacher behind its ledger and its hard stops.

Owns the two hard stops (money, number of requests) and the order of reserving, sending and writing down. Knows neither
endpoints nor what is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tunesmith.errors import BudgetExceeded, TeacherError
from tunesmith.protocols import Teacher
from tunesmith.teachers.budget import Budget, Reservation
from tunesmith.teachers.call import Call, current_call
from tunesmith.teachers.ledger_file import Ledger, request_json
from tunesmith.types import Completion, Message, TeacherRequest

__all__ = ["Ledger", "LedgerClient"]

_DRAIN_SECONDS = 60.0
"""When the disk is full, answers that are paid and on their way are waited for this long, and go into the room that was
kept back for them."""

_ROOM_PER_REQUEST = 1 << 14
_MOST_ROOM = 1 << 26
"""Bytes of disk kept back for the answers in flight: 16 KiB each, 64 MiB at most."""


class LedgerClient:
    """A teacher behind its ledger and its hard stops: the TeacherClient a generator talks to.

    Laws: a key that is on file is answered from the file; equal requests in flight at once share one call; at most
    `concurrency` calls are out at a time, begun in the order they were asked; no call begins whose worst case could
    pass the budget, or that would be request number `max_requests` + 1 (a request asked again after a kill counts once).

    A teacher that says when a request really leaves (`marks_sending`, see call.py) does so; for all others it leaves at once.

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
        spent_before_usd: float = 0.0,
    ) -> None:
        """`where` is the recipe path of the section with the limits ("recipe.generate"), for messages. spent_before_usd:
        what the ledger holds of other orders, which this one's budget does not count."""
        self.identity = teacher.identity
        self.stopped: BudgetExceeded | None = None  # the hard stop that was met, None = none
        self._out_of_money = False
        self._teacher = teacher
        self._ledger = ledger
        if teacher.price.cost(1, 1) > 0:
            ledger.keep_room(min(_MOST_ROOM, concurrency * _ROOM_PER_REQUEST))
        already = max(0.0, ledger.spent_usd + ledger.submitted_usd - spent_before_usd)
        self._budget = Budget(budget_usd, where=f"{where}.budget_usd", spent_usd=already)
        self._max_requests = max_requests
        self._where = where
        self._on_answer = on_answer
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._calls: dict[str, asyncio.Task[Completion]] = {}
        self._known = ledger.keys
        self._repairs: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}  # key -> number of its request, messages in it
        self._asked: dict[str, bool] = {}  # key -> whether its answer was told, in the order they were asked
        self._failed: dict[str, Completion] = {}  # what a file does not answer again in a later process
        self._cost_usd = 0.0
        self._num_paying = 0
        self._teacher_marks = bool(getattr(teacher, "marks_sending", False))

    @property
    def spent_usd(self) -> float:
        """US dollars of all answers on file but those of other orders, and the worst case of requests whose answers a kill has
        lost."""
        return self._budget.spent_usd

    @property
    def cost_usd(self) -> float:
        """US dollars of the answers asked for in this process, from the file or not."""
        return self._cost_usd

    @property
    def num_repaired(self) -> int:
        """Answers of this process that were wanted a second time, whatever came of it; from the file or not."""
        return len(self._repairs)

    @property
    def keys_by_number(self) -> list[str]:
        """Keys in the order of their requests' numbers, then of their length in messages, then of the keys themselves: the same
        whatever the timing, also where one answer leads to the next request."""
        return sorted(self._places, key=lambda key: (*self._places[key], key))

    @property
    def asked_keys(self) -> list[str]:
        """Keys in the order they were first asked."""
        return list(self._asked)

    async def ask(self, request: TeacherRequest) -> Completion:
        """The answer, from the file where it is there. Raises BudgetExceeded at a hard stop, StoreError where the
        answer cannot be written down, TeacherError where the teacher cannot be used at all."""
        key = request.key(self.identity)
        if key not in self._asked:
            self._asked[key] = False
            self._places[key] = request.sample_index, len(request.messages)
        call = self._calls.get(key)
        if call is None:
            answer = self._failed.get(key) or self._ledger.answer(key)
            if answer is not None:
                return self._note(key, answer)
            line = request_json(request)
            self._check_number(key)
            call = asyncio.create_task(self._call(key, request, line))
            call.add_done_callback(_seen)  # an asker may have left
            self._calls[key] = call
        return await asyncio.shield(call)

    async def ask_repaired(
        self, request: TeacherRequest, fault: Callable[[Completion], str | None]
    ) -> tuple[Completion, ...]:
        """Ask, and ask once more where `fault` has a message to send back: what is wrong with the answer, and that it is
        wanted again (None = nothing is wrong).

        Returns the answers in the order they came, one or two; the last one counts, and both are on file. The second
        request shows the teacher its answer and the message, so it is the same for the same answer: a resumed run pays
        for neither again. A failed request and an answer cut by length are not repaired: the first said nothing, the
        second would be cut again.
        """
        first = await self.ask(request)
        if first.finish_reason in ("error", "length") or (wrong := fault(first)) is None:
            return (first,)
        shown = (
            *request.messages,
            Message(role="assistant", content=first.text),
            Message(role="user", content=wrong),
        )
        again = request.model_copy(update={"messages": shown})
        self._repairs.add(again.key(self.identity))
        return first, await self.ask(again)

    async def aclose(self) -> None:
        """Cancel what is in flight and close the teacher. The ledger stays open: it belongs to the caller."""
        calls = list(self._calls.values())
        if self._ledger.is_full and self._num_paying:
            self._stop_asking()
            await asyncio.wait(calls, timeout=_DRAIN_SECONDS)
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

    def _stop_asking(self) -> None:
        """No further request goes out."""
        self.stopped = self.stopped or BudgetExceeded(
            "the disk is full", where=str(self._ledger.path), hint="free some space and run the same command again"
        )
        self._out_of_money = True

    async def _call(self, key: str, request: TeacherRequest, line: bytes) -> Completion:
        try:
            async with self._slots:
                return self._note(key, await self._pay(key, request, line))
        finally:
            del self._calls[key]

    async def _reserve(self, key: str, request: TeacherRequest) -> Call:
        submitted = self._ledger.batch_of(key)
        if submitted is not None:
            return self._call_for(key, self._budget.adopt(submitted[1]), submitted[0])
        worst = self._teacher.price.cost(self._teacher.count_prompt_tokens(request), request.sampling.max_tokens)
        if self._out_of_money:
            raise self._stop()
        try:
            return self._call_for(key, await self._budget.reserve(worst), None)
        except BudgetExceeded as error:
            self.stopped, self._out_of_money = self.stopped or error, True
            raise

    def _call_for(self, key: str, reservation: Reservation, batch: str | None) -> Call:
        ledger = self._ledger
        return Call(
            key,
            reservation,
            mark=lambda usd, batch: ledger.sent(key, usd, batch),
            keep=lambda data: ledger.broken(key, data),
            batch=batch,
        )

    async def _pay(self, key: str, request: TeacherRequest, line: bytes) -> Completion:
        call = await self._reserve(key, request)
        if self._out_of_money and call.batch is None:  # while this one waited for room
            self._budget.settle(call.reservation, 0.0)
            raise self._stop()
        current_call.set(call)
        cost: float | None = None
        started = time.monotonic()
        self._num_paying += 1
        try:
            if not self._teacher_marks:
                call.sending()
            completion = await self._teacher.complete(request)
            cost = completion.cost_usd
            self._ledger.record(key, line, completion, time.monotonic() - started, call.raw)
        except TeacherError:
            cost = 0.0  # refused: a wrong key or an unknown model is not billed
            if call.is_marked:
                self._ledger.refused(key)
            raise
        finally:
            self._num_paying -= 1
            if cost is None:  # cancelled, or not written down: it may have been billed where it went out
                cost = call.reservation.usd if call.is_marked else 0.0
            self._budget.settle(call.reservation, cost)
        return completion

    def _note(self, key: str, completion: Completion) -> Completion:
        if not self._asked[key]:
            self._asked[key] = True
            self._cost_usd += completion.cost_usd
            if completion.finish_reason == "error":
                self._failed[key] = completion
            self._on_answer(completion)
        return completion


def _seen(call: asyncio.Task[Completion]) -> None:
    if not call.cancelled():
        call.exception()
