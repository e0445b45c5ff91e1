"""The window against simulated endpoints: heaps of events, no clock, no socket."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from tunesmith.teachers.window import Window


def simulate(
    window: Window, *, seconds: float, latency: Callable[[int], float], refuses: Callable[[int, float], bool]
) -> tuple[int, list[tuple[float, float]]]:
    """Keep the window full for so long. Returns (answers, [(time, size)])."""
    events: list[tuple[float, int, bool]] = []
    now, number, answers, sizes = 1.0, 0, 0, []
    while now < 1.0 + seconds:
        while window.has_room:
            window.enter()
            number += 1
            refused = refuses(window.in_flight, now)
            heapq.heappush(events, (now + (0.01 if refused else latency(window.in_flight)), number, refused))
        now, _, refused = heapq.heappop(events)
        answers += not refused
        window.leave(refused=refused, tokens=0 if refused else 100, now=now)
        sizes.append((now, window.size))
    return answers, sizes


@pytest.mark.parametrize("rng_seed", range(5))
def test_one_refusal_in_twenty_at_random_never_shrinks_a_window(rng_seed: int) -> None:
    rng = random.Random(rng_seed)
    window = Window(start=100, most=100)
    answers, sizes = simulate(window, seconds=60, latency=lambda n: 0.5, refuses=lambda n, now: rng.random() < 0.05)
    assert min(size for _, size in sizes) == 100
    assert answers > 0.95 * 60 * 100 / 0.5


def test_an_endpoint_that_refuses_in_earnest_is_left_with_what_it_takes_and_used_again_when_it_recovers() -> None:
    window = Window(start=200, most=200)
    _, sizes = simulate(
        window, seconds=40, latency=lambda n: 0.5, refuses=lambda n, now: n > (20 if 10 < now < 20 else 200)
    )
    during = [size for now, size in sizes if 13 < now < 20]
    after = [size for now, size in sizes if now > 35]
    assert min(during) < 40
    assert sum(during) / len(during) < 60
    assert max(after) == 200
    assert window.num_cuts >= 1


@pytest.mark.parametrize(("slots", "least", "most"), [(4, 4, 32), (32, 32, 128), (128, 128, 512)])
def test_a_window_grows_while_throughput_grows_and_stops_near_the_servers_slots(
    slots: int, least: int, most: int
) -> None:
    """A server with so many slots: beyond them, requests only wait longer."""
    rng = random.Random(3)
    window = Window(start=8, most=1024)
    simulate(
        window,
        seconds=400,
        latency=lambda n: rng.uniform(0.9, 1.1) * max(1.0, n / slots),
        refuses=lambda n, now: False,
    )
    assert least <= window.size <= most


def test_a_window_grows_to_its_end_where_nothing_slows_down() -> None:
    window = Window(start=8, most=1024)
    _, sizes = simulate(window, seconds=30, latency=lambda n: 0.5, refuses=lambda n, now: False)
    assert window.size == 1024
    assert next(now for now, size in sizes if size == 1024) < 16


def test_a_window_that_is_not_used_up_does_not_grow() -> None:
    window = Window(start=8, most=1024)
    now = 1.0
    for _ in range(500):
        for _ in range(3):
            window.enter()
        now += 0.5
        for _ in range(3):
            window.leave(refused=False, tokens=100, now=now)
    assert window.size == 8
