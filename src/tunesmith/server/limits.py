"""How much at once: slots and their queue, and requests per minute of one caller."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tunesmith.server.responses import RequestError

_MAX_CALLERS = 10_000  # buckets kept; the one idle longest is forgotten first


class Admission:
    """`num_slots` answers run, at most `max_queue` wait in the order they came, the next is refused."""

    def __init__(self, num_slots: int, max_queue: int) -> None:
        self._slots = asyncio.Semaphore(num_slots)
        self._num_slots = num_slots
        self._max_queue = max_queue
        self._claimed = 0  # admitted and not yet finished
        self.running = 0
        self._seconds = 1.0  # smoothed time of one answer

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return self._claimed - self.running

    def claim(self, count: int) -> None:
        """Reserve room for `count` answers. Raises RequestError 503 where the queue is full."""
        if self._claimed + count > self._num_slots + self._max_queue and self._claimed:
            seconds = math.ceil(self._seconds * max(1, self.waiting) / self._num_slots)
            raise unavailable("the queue is full; try again later", seconds=min(60, max(1, seconds)), code="queue_full")
        self._claimed += count

    def release(self, count: int) -> None:
        """Give back the room of claimed answers."""
        self._claimed -= count

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. The room was claimed before."""
        async with self._slots:
            self.running += 1
            start = time.monotonic()
            try:
                yield
            finally:
                self.running -= 1
                self._seconds += 0.1 * (time.monotonic() - start - self._seconds)


class RateLimiter:
    """A bucket of requests per caller that refills evenly over a minute."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (tokens, time)

    def take(self, caller: str) -> None:
        """Raises RequestError 429 with Retry-After where the caller has used up its share."""
        if self._per_minute is None:
            return
        now = self._clock()
        tokens, then = self._buckets.pop(caller, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - then) * self._per_minute / 60)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            seconds = math.ceil((1 - tokens) * 60 / self._per_minute)
            raise RequestError(
                429,
                f"more than {self._per_minute} requests per minute; try again in {seconds} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, seconds))},
            )


def unavailable(message: str, *, seconds: int, code: str) -> RequestError:
    """503 with the time after which to try again."""
    return RequestError(503, message, code=code, headers={"Retry-After": str(seconds)})
