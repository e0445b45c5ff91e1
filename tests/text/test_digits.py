"""A judge's mark from log-probabilities or from its words."""

from __future__ import annotations

import math

import pytest

from tunesmith.text.digits import expected_digit
from tunesmith.types import Completion


def place(**masses: float) -> dict[str, float]:
    return {text.replace("d", ""): math.log(mass) for text, mass in masses.items()}


def test_the_expectation_is_over_the_digits_of_the_scale_alone() -> None:
    answer = Completion(text="7", top_logprobs=[place(d7=0.6, d3=0.2, d0=0.1, word=0.1)])
    assert expected_digit(answer, 1, 9) == pytest.approx((0.6 * 7 + 0.2 * 3) / 0.8)
    assert expected_digit(answer, 0, 9) == pytest.approx((0.6 * 7 + 0.2 * 3) / 0.9)


def test_the_first_place_where_the_judge_thought_of_a_digit_counts() -> None:
    answer = Completion(text="\n4", top_logprobs=[place(new=0.95, d2=0.04), place(d4=0.9)])
    assert expected_digit(answer, 1, 9) == pytest.approx(4)


@pytest.mark.parametrize(
    ("text", "expected"), [("I say 3.", 3.0), ("10", None), ("4/9", 4.0), ("8.5", None), ("0", None), ("none", None)]
)
def test_without_log_probabilities_a_digit_that_stands_alone_is_read(text: str, expected: float | None) -> None:
    assert expected_digit(Completion(text=text), 1, 9) == expected
