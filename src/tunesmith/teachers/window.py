"""How many requests may be in flight at one endpoint: found out by trying where nobody says, cut where the endpoint
refuses in earnest.

Owns one number. Knows neither requests nor clocks: the caller says what happened and when.
"""

from __future__ import annotations

FIRST_SIZE = 8
"""Where a window that is found out begins: two slots on each of four cores, one batch of a small GPU server."""

MOST_IN_FLIGHT = 1024
"""Where a window that is found out ends."""

MOST_IN_ONE_BATCH = 50_000
"""Requests of one batch at OpenAI (its limit); nothing else bounds what is out while a batch runs."""

SUSTAINED_SHARE = 0.25
"""Refusals in a round above which the endpoint means it. One request in twenty refused at random is below it: halving
the window for each of those is how a client starves at an endpoint that would serve it."""

_CALM_SHARE = 0.1  # refusals below which a window may grow again
_MIN_ROUND = 20  # outcomes before a share means anything
_WORTH = 1.15  # a doubled window that answers less than this much faster was no gain
_REGROWTH = 1.25  # per round, after a cut: back from a tenth in ten round trips


class Window:
    """Counts in rounds of about one round trip: as many outcomes as the window holds.

    most: largest size. start: first size; where it is below `most`, the window doubles while tokens per second grow by
    15 % a doubling, and goes back to the size that served best once two doublings in a row did not.
    """

    def __init__(self, *, start: int, most: int) -> None:
        self.size = float(min(start, most))
        self.in_flight = 0
        self.num_cuts = 0
        self._most = most
        self._exploring = start < most
        self._ceiling = float(most)  # where growth ends: `most`, or the size that served best
        self._best = (0.0, self.size)  # (tokens per second, size)
        self._failures = 0  # doublings in a row that were no gain
        self._skip = 0  # outcomes still to come from before the last change
        self._was_full = False
        self._begin(0.0)

    @property
    def has_room(self) -> bool:
        """Whether one more may go out."""
        return self.in_flight < int(self.size)

    @property
    def load(self) -> float:
        """Share of the window that is in use."""
        return self.in_flight / self.size

    def enter(self) -> None:
        """One request goes out."""
        self.in_flight += 1
        if self.in_flight >= int(self.size):
            self._was_full = True

    def leave(self, *, refused: bool, tokens: int, now: float) -> bool:
        """One request has ended. True where the window was cut for refusals."""
        self.in_flight -= 1
        if self._skip > 0:
            self._skip -= 1
            self._begin(now)
            return False
        self._num += 1
        self._refused += refused
        self._tokens += tokens
        if self._num < max(int(self.size), _MIN_ROUND):
            return False
        return self._end_round(now)

    def _begin(self, now: float) -> None:
        self._began = now
        self._num = self._refused = self._tokens = 0
        self._was_full = self.in_flight >= int(self.size)

    def _end_round(self, now: float) -> bool:
        share = self._refused / self._num
        speed = self._tokens / max(now - self._began, 1e-6) if self._began else 0.0
        was_full = self._was_full
        self._begin(now)
        if share > SUSTAINED_SHARE:
            self._resize(max(1.0, min(self.size, self._num) * (1 - share)))
            self._exploring = False
            self.num_cuts += 1
            return True
        if share <= _CALM_SHARE and was_full:
            self._grow(speed)
        return False

    def _grow(self, speed: float) -> None:
        if self._exploring:
            self._explore(speed)
        elif self.size < self._ceiling:
            self._resize(min(self._ceiling, self.size * _REGROWTH + 1), wait=False)

    def _explore(self, speed: float) -> None:
        if speed <= 0:
            return
        if speed > self._best[0] * _WORTH:
            self._best, self._failures = (speed, self.size), 0
        else:
            self._failures += 1
        if self._failures == 2:
            self._exploring, self._ceiling = False, self._best[1]
            self._resize(self._best[1])
        elif self.size >= self._most:
            self._exploring = self._failures > 0  # one more look where the last doubling was no gain
        else:
            self._resize(min(float(self._most), self.size * 2))

    def _resize(self, size: float, *, wait: bool = True) -> None:
        """A new size; what is in flight belongs to the old one and says nothing about it."""
        self.size = size
        self._skip = self.in_flight if wait else 0
