"""Many requests in flight, answers taken in the order of the requests: what makes a resumed generation equal to an
uninterrupted one. Knows nothing of prompts or rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

from tunesmith.errors import BudgetExceeded, TeacherError
from tunesmith.protocols import TeacherClient
from tunesmith.types import Completion, TeacherRequest

_MAX_IN_FLIGHT = 1024
"""Bounds memory. The client bounds what really goes out."""


async def answers_in_order(
    client: TeacherClient, requests: Iterable[TeacherRequest], may_ask: Callable[[int], bool]
) -> AsyncGenerator[tuple[TeacherRequest, Completion]]:
    """Yields (request, answer) in the order of `requests`, asking ahead while may_ask(requests in flight) allows it.

    Law: a request is begun only after all before it, and `may_ask` sees a state made by a prefix of the answers. So if
    `may_ask` grants no more requests than are needed even when every row is kept, the requests that are made, and the
    order of their answers, are the same whatever the timing, the concurrency and the number of interruptions.

    Ends early at a hard stop (BudgetExceeded), after the answers before it; the client remembers which it was.
    """
    coming = iter(requests)
    waiting: deque[tuple[TeacherRequest, asyncio.Task[Completion]]] = deque()
    try:
        while True:
            while len(waiting) < _MAX_IN_FLIGHT and may_ask(len(waiting)):
                request = next(coming, None)
                if request is None:
                    break
                waiting.append((request, asyncio.create_task(_ask(client, request))))
            if not waiting:
                return
            request, answer = waiting.popleft()
            try:
                completion = await answer
            except BudgetExceeded:
                return
            yield request, completion
    finally:
        for _, answer in waiting:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in waiting), return_exceptions=True)


async def _ask(client: TeacherClient, request: TeacherRequest) -> Completion:
    return await client.ask(request)


class Patience:
    """When to give up: more than `max_failures` requests have failed for good, or more than `max_failures` answers in a
    row held not one readable row."""

    def __init__(self, max_failures: int, *, where: str) -> None:
        self._max_failures = max_failures
        self._where = where
        self._num_failed = 0
        self._unreadable = 0

    def failed(self, error: str | None) -> None:
        """One request failed for good. Raises TeacherError with its message where it was one too many."""
        self._num_failed += 1
        if self._num_failed > self._max_failures:
            raise TeacherError(
                f"{self._num_failed} requests failed; the last one: {error}",
                where=self._where,
                hint="run again to go on: answers that came are kept. More failures are borne with `max_failures`",
            )

    def read(self, num_rows: int, answer: str) -> None:
        """One answer held `num_rows` readable rows. Raises TeacherError where too many in a row held none."""
        self._unreadable = 0 if num_rows else self._unreadable + 1
        if self._unreadable > self._max_failures:
            start = " ".join(answer.split())[:200]
            raise TeacherError(
                f"not one of the last {self._unreadable} answers holds a row that can be read; the last one begins: "
                f"{start!r}",
                where=self._where,
                hint="a stronger teacher, a larger `max_tokens`, or fewer `rows_per_request` may help",
            )
