"""What an endpoint allows per minute: token buckets, and the headers that tell their state.

Owns arithmetic and header forms. Sends nothing, waits for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_PACE = 59 / 60
"""A stated limit is approached to this share: one second's worth may be saved up, and any 60 s still keep the limit."""


class Allowance(NamedTuple):
    """What an endpoint said about one of its limits."""

    limit: float
    remaining: float
    reset_seconds: float | None  # until `remaining` is back at `limit`


class Bucket:
    """A token bucket. Without a rate, from the recipe or the endpoint, everything passes.

    per_minute: a limit stated in the recipe, None = what the endpoint's headers say.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._stated = per_minute is not None
        self._rate = None if per_minute is None else per_minute / 60 * _PACE  # tokens per second
        self._capacity = 0.0 if per_minute is None else max(1.0, per_minute / 60)
        self._level = self._capacity
        self._at = 0.0
        self._in_flight = 0.0  # taken by requests that have no answer yet

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until `amount` may be taken; 0 = now. More than the bucket holds may be taken from a full one."""
        if self._rate is None:
            return 0.0
        self._fill(now)
        missing = min(amount, self._capacity) - self._level
        return 0.0 if missing <= 1e-9 else missing / self._rate

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be."""
        self._in_flight += amount
        if self._rate is not None:
            self._fill(now)
            self._level -= amount

    def settle(self, amount: float, used: float, now: float) -> None:
        """A request that took `amount` has ended and used `used`."""
        self._in_flight = max(0.0, self._in_flight - amount)
        if self._rate is not None:
            self._fill(now)
            self._level = min(self._capacity, self._level + amount - used)

    def learn(self, told: Allowance, now: float) -> None:
        """Believe the endpoint, for what it cannot know: requests it had not seen when it wrote the header."""
        if told.limit <= 0:
            return
        spent, reset = told.limit - told.remaining, told.reset_seconds
        rate = told.limit / 60
        if reset is not None and reset > 1e-3 and spent > 0:
            rate = min(max(spent / reset, told.limit / 86400), told.limit)
        if self._rate is None:
            self._capacity, self._level, self._at = told.limit, told.remaining, now
        if not self._stated:
            self._rate, self._capacity = rate, told.limit
        self._fill(now)
        unseen = told.remaining - self._in_flight
        self._level = min(self._level if self._stated else max(self._level, unseen), told.remaining)

    def _fill(self, now: float) -> None:
        if self._rate is not None and now > self._at:
            if self._at:
                self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
            self._at = now


def read_allowance(headers: Mapping[str, str], what: str) -> Allowance | None:
    """`what`: "requests" or "tokens". Reads x-ratelimit-{limit,remaining,reset}-{what}, as OpenAI and most compatible
    servers send them. None where limit or remaining is missing or no number."""
    limit = headers.get(f"x-ratelimit-limit-{what}")
    if limit is None:
        return None
    remaining = headers.get(f"x-ratelimit-remaining-{what}", "")
    try:
        told = float(limit), max(0.0, float(remaining))
    except ValueError:
        return None
    return Allowance(*told, read_seconds(headers.get(f"x-ratelimit-reset-{what}", "")))


def read_seconds(text: str) -> float | None:
    """A duration as endpoints write it: "12", "1.5s", "6m0s", "20ms". None where it is none."""
    text = text.strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After-Ms or Retry-After asks for, the latter in seconds or as an HTTP date; None without one.
    Names in lower case, or a mapping that does not care."""
    milliseconds = read_seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    seconds = read_seconds(value)
    if seconds is not None:
        return seconds
    date = _http_date(value)
    return None if date is None else max(0.0, (date - datetime.now(UTC)).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
