"""Every sample once per epoch, the right number of steps, and the learning rate's course."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tunesmith.training.schedule import StepPlan, learning_rate_at, micro_batches


def plan(**changes: Any) -> StepPlan:
    values: dict[str, Any] = {
        "lengths": np.array([30, 40, 50, 60, 70, 20, 10, 90], dtype=np.int64),
        "pack_length": 100,
        "global_batch_size": 1,
        "num_epochs": 2,
        "max_steps": None,
        "rng_seed": 5,
    }
    return StepPlan(**{**values, **changes})


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_epoch_trains_on_every_sample_once(batch: int) -> None:
    made = plan(global_batch_size=batch)
    for epoch in range(2):
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        seen = [index for step in steps for pack in made.packs(step) for index in pack]
        assert sorted(seen) == list(range(8))


def test_epochs_differ_in_order_and_the_seed_decides_it() -> None:
    made, again, other = plan(), plan(), plan(rng_seed=6)
    first = [made.packs(step) for step in range(made.num_steps)]
    assert first[: made.steps_per_epoch] != first[made.steps_per_epoch :]
    assert first == [again.packs(step) for step in range(again.num_steps)]
    assert first != [other.packs(step) for step in range(other.num_steps)]


def test_steps_may_be_asked_for_in_any_order() -> None:
    made = plan(num_epochs=4)
    forward = [made.packs(step) for step in range(made.num_steps)]
    assert [made.packs(step) for step in reversed(range(made.num_steps))] == forward[::-1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_epochs": 1}, 4),
        ({"num_epochs": 2.5}, 10),
        ({"num_epochs": 0.01}, 1),
        ({"num_epochs": 1, "global_batch_size": 3}, 2),
        ({"num_epochs": 3, "max_steps": 7}, 7),
        ({"num_epochs": 1, "max_steps": 70}, 4),
    ],
)
def test_number_of_steps(changes: dict[str, Any], expected: int) -> None:
    assert plan(**changes).num_steps == expected


def test_micro_batches_hold_each_pack_once() -> None:
    assert micro_batches([(1, 2), (3,), (4, 5)], 2) == [(1, 2, 3), (4, 5)]
    assert micro_batches([(1, 2), (3,)], 8) == [(1, 2, 3)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_to_its_peak_and_never_reaches_zero(schedule: Any) -> None:
    rates = [
        learning_rate_at(step, 100, peak=2e-4, schedule=schedule, warmup_ratio=0.1, min_ratio=0.0)
        for step in range(100)
    ]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == 2e-4
    assert rates[0] == pytest.approx(2e-4 / 11)
    assert min(rates) > 0
    if schedule == "constant":
        assert set(rates[10:]) == {2e-4}
    else:
        assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 5e-6
        assert rates[55] == pytest.approx(1e-4)  # half way down


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert learning_rate_at(0, 1, peak=1.0, schedule="cosine", warmup_ratio=0.0, min_ratio=0.1) == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_falls_to_a_share_of_its_peak(schedule: Any) -> None:
    def rates(least: float) -> list[float]:
        options: Any = {"peak": 2.0, "schedule": schedule, "warmup_ratio": 0.1, "min_ratio": least}
        return [learning_rate_at(step, 1000, **options) for step in range(1000)]

    to_nothing, to_a_tenth = rates(0.0), rates(0.1)
    assert to_a_tenth[:101] == to_nothing[:101] and max(to_a_tenth) == 2.0
    assert to_a_tenth[100:] == pytest.approx([0.2 + 0.9 * rate for rate in to_nothing[100:]])
    assert 0.2 < to_a_tenth[-1] < 0.203
