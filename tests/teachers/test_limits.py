"""Token buckets, and the headers that fill them."""

from __future__ import annotations

import pytest

from tunesmith.teachers.limits import Allowance, Bucket, read_allowance, read_seconds, retry_after_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12", 12),
        ("1.5s", 1.5),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3s", 3723),
        ("", None),
        ("soon", None),
        ("3s!", None),
    ],
)
def test_durations_are_read_as_endpoints_write_them(text: str, seconds: float | None) -> None:
    assert read_seconds(text) == (None if seconds is None else pytest.approx(seconds))


def test_rate_limit_headers_are_read_and_halves_of_them_are_not() -> None:
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
        "x-ratelimit-limit-tokens": "many",
        "x-ratelimit-remaining-tokens": "1",
    }
    assert read_allowance(headers, "requests") == Allowance(600, 599, pytest.approx(0.1))
    assert read_allowance(headers, "tokens") is None
    assert read_allowance({}, "requests") is None


def test_a_pause_in_milliseconds_wins_over_one_in_seconds() -> None:
    assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after_seconds({"retry-after": "7"}) == 7
    assert retry_after_seconds({"retry-after": "later"}) is None


@pytest.mark.parametrize("per_minute", [30, 600, 6000])
def test_no_minute_holds_more_than_a_stated_limit(per_minute: int) -> None:
    bucket, now, sent = Bucket(per_minute), 1000.0, []
    while now < 1200:
        wait = bucket.seconds_until(1, now)
        if wait > 0:
            now += wait
            continue
        bucket.take(1, now)
        sent.append(now)
    for start in range(1000, 1140):
        assert sum(start <= at < start + 60 for at in sent) <= per_minute
    assert len(sent) > per_minute * 3.1, "and it is nearly used up"


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_the_next_one_waits_longer() -> None:
    bucket = Bucket(60)
    assert bucket.seconds_until(100, 1.0) == 0
    bucket.take(100, 1.0)
    assert bucket.seconds_until(1, 1.0) == pytest.approx(100 * 60 / 59, rel=0.01)


def test_tokens_that_were_not_used_come_back() -> None:
    bucket = Bucket(6000)
    bucket.take(100, 1.0)
    assert bucket.seconds_until(50, 1.0) > 0
    bucket.settle(100, 20, 1.0)
    assert bucket.seconds_until(50, 1.0) == 0


def test_an_endpoint_that_has_nothing_left_is_waited_for_at_the_rate_it_told() -> None:
    bucket = Bucket(None)
    assert bucket.seconds_until(1, 1.0) == 0
    bucket.learn(Allowance(limit=600, remaining=0, reset_seconds=60), 1.0)
    assert bucket.seconds_until(1, 1.0) == pytest.approx(0.1)
    assert bucket.seconds_until(1, 1.2) == 0


def test_what_is_in_flight_unseen_by_the_endpoint_is_taken_off_what_it_says_is_left() -> None:
    bucket = Bucket(None)
    bucket.learn(Allowance(100, 100, None), 1.0)
    for _ in range(60):
        bucket.take(1, 1.0)
    bucket.learn(Allowance(100, 100, None), 1.0)  # written before it had seen them
    assert bucket.seconds_until(40, 1.0) == 0
    assert bucket.seconds_until(41, 1.0) > 0


def test_a_stated_limit_below_the_endpoints_own_stays() -> None:
    bucket = Bucket(60)
    bucket.learn(Allowance(10_000, 9_999, 0.006), 1.0)
    bucket.take(1, 1.0)
    assert bucket.seconds_until(1, 1.0) > 0.9
