"""Roads to one model: an endpoint with a key is a lane, with what it allows and how it fares. Each request takes the lane
with the lowest load that may take it now; a lane that fails rests while others go on.

Owns who may send when, and where. Sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping

from tunesmith.errors import TeacherError
from tunesmith.protocols import Price
from tunesmith.teachers.endpoint import Attempt, Dialect
from tunesmith.teachers.limits import Bucket, read_allowance
from tunesmith.teachers.window import Window

_FAILURES_TO_REST = 5
"""Failures in a row before a lane rests (only where there is another)."""

_FIRST_REST_SECONDS = 0.5
_LONGEST_REST_SECONDS = 60.0


class Lane:
    """One endpoint with one key. `name` is for people and holds no secret."""

    def __init__(
        self,
        name: str,
        *,
        url: str,
        headers: Mapping[str, str],
        price: Price,
        window: Window,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
    ) -> None:
        self.name = name
        self.url = url
        self.headers = headers
        self.price = price
        self.window = window
        self.dialect = Dialect()
        self.requests = Bucket(requests_per_minute)
        self.tokens = Bucket(tokens_per_minute)
        self.dead: TeacherError | None = None  # why it is of no use any more
        self.rests_until = 0.0
        self.was_reached = False  # whether it has ever answered anything
        self.num_answered = 0
        self._failures = 0
        self._rest_seconds = _FIRST_REST_SECONDS

    def __repr__(self) -> str:
        return f"Lane({self.name!r}, in_flight={self.window.in_flight}, size={self.window.size:g})"

    def seconds_until_free(self, tokens: float, now: float) -> float:
        """How long its limits and its rest still hold a request back; the window is not asked."""
        return max(
            self.rests_until - now, self.requests.seconds_until(1, now), self.tokens.seconds_until(tokens, now), 0.0
        )

    def enter(self, tokens: float, now: float) -> None:
        """A request of about so many tokens goes out."""
        self.window.enter()
        self.requests.take(1, now)
        self.tokens.take(tokens, now)

    def leave(self, tokens: float, attempt: Attempt | None, headers: Mapping[str, str], now: float) -> bool:
        """It has ended; attempt None = it never went out. True where refusals have just cut the window."""
        usage = attempt.completion.usage if attempt is not None and attempt.completion is not None else None
        used = tokens if usage is None else usage.prompt_tokens + usage.completion_tokens
        self.requests.settle(1, 1 if attempt is not None else 0, now)
        self.tokens.settle(tokens, used if attempt is not None else 0, now)
        if headers:
            for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
                if (told := read_allowance(headers, what)) is not None:
                    bucket.learn(told, now)
        refused = attempt is not None and attempt.refused
        cut = self.window.leave(refused=refused, tokens=0 if usage is None else usage.completion_tokens, now=now)
        if cut and attempt is not None and attempt.retry_after:
            self.rests_until = max(self.rests_until, now + attempt.retry_after)
        return cut

    def note(self, attempt: Attempt, now: float) -> bool:
        """Count successes and failures; True where it has failed so often in a row that it should rest."""
        if attempt.kind != "retry" or attempt.refused:
            self._failures, self._rest_seconds = 0, _FIRST_REST_SECONDS
            self.num_answered += attempt.kind == "answered"
            return False
        if now < self.rests_until:
            return False  # sent before the rest began
        self._failures += 1
        return self._failures >= _FAILURES_TO_REST

    def rest(self, now: float) -> float:
        """Let it rest, each time twice as long as before. Returns the seconds."""
        seconds = self._rest_seconds
        self.rests_until = now + seconds
        self._rest_seconds = min(_LONGEST_REST_SECONDS, seconds * 2)
        self._failures = _FAILURES_TO_REST - 1  # the next failure sends it to rest again
        return seconds


class Lanes:
    """Requests enter in the order they come; those that are tried again go before all that were never sent."""

    def __init__(self, lanes: list[Lane], *, notify: Callable[[str], None]) -> None:
        """notify: told in a sentence when a lane is given up, rests or is slowed down."""
        self.all = lanes
        self._notify = notify
        self._waiting: deque[tuple[asyncio.Future[Lane], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> list[Lane]:
        """Lanes that may still be used."""
        return [lane for lane in self.all if lane.dead is None]

    async def enter(self, tokens: float, *, again: bool) -> Lane:
        """The lane to send on, once one may take a request of about so many tokens. Give it back with `leave`.

        Raises the TeacherError of the last lane where all are dead.
        """
        if not self._waiting:
            lane, _ = self._pick(tokens, now := time.monotonic())
            if lane is not None:
                lane.enter(tokens, now)
                return lane
        turn: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)((turn, tokens))
        self._dispatch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result(), tokens, None, {})
            raise

    def leave(self, lane: Lane, tokens: float, attempt: Attempt | None, headers: Mapping[str, str]) -> None:
        """The request has ended; attempt None = it never went out."""
        now = time.monotonic()
        if lane.leave(tokens, attempt, headers, now):
            self._notify(f"{lane.name} refuses too many requests: {int(lane.window.size)} in flight from now on")
        if attempt is not None and lane.note(attempt, now) and len(self.alive) > 1:
            seconds = lane.rest(now)
            self._notify(f"{lane.name} fails and rests for {seconds:g} s: {attempt.message}")
        self._dispatch()

    def bury(self, lane: Lane, error: TeacherError) -> bool:
        """Give a lane up for good. False where it was the last one."""
        if lane.dead is None:
            lane.dead = error
            if self.alive:
                self._notify(f"{lane.name} is not used any more: {error.message}")
        self._dispatch()
        return bool(self.alive)

    def _pick(self, tokens: float, now: float) -> tuple[Lane | None, float]:
        """(the least loaded lane that may take it now, else None; seconds until limits let one take it)."""
        best, soonest = None, float("inf")
        for lane in self.all:
            if lane.dead is not None or not lane.window.has_room:
                continue
            wait = lane.seconds_until_free(tokens, now)
            if wait > 0:
                soonest = min(soonest, wait)
            elif best is None or lane.window.load < best.window.load:
                best = lane
        return best, soonest

    def _dispatch(self) -> None:
        """Send as many of those that wait as may go now, and come back when the next may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self.alive:
            self._turn_all_away()
        while self._waiting:
            turn, tokens = self._waiting[0]
            if turn.done():  # its task was cancelled
                self._waiting.popleft()
                continue
            now = time.monotonic()
            lane, soonest = self._pick(tokens, now)
            if lane is None:
                if soonest < float("inf"):
                    self._timer = asyncio.get_running_loop().call_later(soonest + 1e-3, self._dispatch)
                return
            self._waiting.popleft()
            lane.enter(tokens, now)
            turn.set_result(lane)

    def _turn_all_away(self) -> None:
        last = self.all[-1].dead
        assert last is not None
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(TeacherError(last.message, where=last.where, hint=last.hint))

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
