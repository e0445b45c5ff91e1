"""The estimate grows with what costs."""

from __future__ import annotations

from typing import Any

from tunesmith.training.estimate import estimate_training


def estimate(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "num_tokens": 30_000,
        "num_epochs": 6,
        "num_parameters": 134_515_008,
        "method": "lora",
    }
    return estimate_training(**{**values, **changes})


def test_the_demo_is_minutes_and_a_few_gigabytes() -> None:
    guess = estimate()
    assert 100 < guess["seconds"] < 900
    assert 1e9 < guess["memory_bytes"] < 4e9


def test_time_grows_with_tokens_epochs_and_parameters() -> None:
    assert estimate(num_tokens=60_000)["seconds"] > estimate()["seconds"]
    assert estimate(num_tokens=60_000, num_epochs=3)["seconds"] == estimate()["seconds"]
    assert estimate(num_parameters=269_030_016)["seconds"] > 1.5 * estimate()["seconds"]


def test_full_fine_tuning_takes_more_time_and_much_more_memory() -> None:
    extra = estimate(method="full")["memory_bytes"] - estimate()["memory_bytes"]
    assert extra == 16 * 134_515_008
    assert estimate(method="full")["seconds"] > estimate()["seconds"]
