"""Many requests in flight, results taken in the order they were begun: what makes a resumed generation equal to an
uninterrupted one. Knows nothing of prompts or rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

from tunesmith.errors import BudgetExceeded, TeacherError

S = TypeVar("S")
T = TypeVar("T")

_AHEAD = 4096
"""Items begun beyond those that a client can have out at a time. Results that came early wait here for one that is late: at 2,000
requests a second this is two seconds, a refused request's pause. Bounds memory, about 2 KB each."""


async def results_in_order(
    items: Iterable[S], work: Callable[[S], Awaitable[T]], may_begin: Callable[[int], bool], *, concurrency: int
) -> AsyncGenerator[T]:
    """Yields work(item) in the order of `items`, beginning ahead while may_begin(items in flight) allows it. The work on
    an item may be a chain of requests. concurrency: of the clients that the work asks; enough items are begun to keep
    them busy.

    Law: an item is begun only after all before it, and `may_begin` sees a state made by a prefix of the results. So if
    work(item) depends on nothing but the item, and `may_begin` grants no more items than are needed even when every
    row is kept, then the requests that are made and the order of the results are the same whatever the timing, the
    concurrency and the number of interruptions.

    Ends early at a hard stop (BudgetExceeded), after the results before it; the client remembers which it was.
    """
    coming = iter(items)
    waiting: deque[asyncio.Task[T]] = deque()
    try:
        while True:
            while len(waiting) < concurrency + _AHEAD and may_begin(len(waiting)):
                try:
                    item = next(coming)
                except StopIteration:
                    break
                waiting.append(asyncio.create_task(_begin(work, item)))
            if not waiting:
                return
            try:
                result = await waiting.popleft()
            except (
                BudgetExceeded
            ):  # later items may have a request out, which is paid: it is waited for, not thrown away
                await asyncio.gather(*waiting, return_exceptions=True)
                return
            yield result
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _begin(work: Callable[[S], Awaitable[T]], item: S) -> T:
    return await work(item)


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
