"""Arithmetic is walked, never executed."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tunesmith.generating.arithmetic import evaluate, final_number, number_in, wrong_equation


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 3", 36),
        ("(4 + 6) ÷ 4", Fraction(5, 2)),
        ("3 × 1,200 - 5", 3595),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("2 ^ 10", 1024),
        ("80 * 25%", 20),
        ("$15 - $3.50", Fraction(23, 2)),
        ("-3 + 5 =", 2),
        ("17 % 5", 2),
    ],
)
def test_school_arithmetic_is_exact(expression: str, value: Fraction) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "x + 1", "abs(3)", "[1][0]", "1 if 2 else 3", "'a' * 9", "9 ** 9 ** 9",
        "2 ** 1000", "1 / 0", "", "1 +", "10 ** 60 ** 2", "True + 1", "lambda: 3", "(" * 300 + "1" + ")" * 300,
    ],
)  # fmt: skip
def test_what_is_no_school_arithmetic_has_no_value(expression: str) -> None:
    assert evaluate(expression) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("42 apples", 42), ("1,200", 1200), ("$3.50", Fraction(7, 2)), ("3/4", Fraction(3, 4)), ("25%", Fraction(1, 4)),
     ("two", None), ("3 or 4", None), ("-7", -7)],
)  # fmt: skip
def test_a_short_text_stands_for_one_number_or_none(text: str, number: Fraction | None) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\nAnswer: 7", 7),
        ("First 12.\nThe answer is 1,250 euros.", 1250),
        ("先算 3 × 4 = 12\n答案：12", 12),
        ("5 bags\nSo there are 45 marbles left.", 45),
        ("no number here", None),
        ("Answer: 3\nWait.\nAnswer: 5", 5),
    ],
)
def test_the_final_number_of_a_solution_is_found(text: str, number: int | None) -> None:
    assert final_number(text) == number


def test_a_wrong_equation_is_named_and_a_rounded_one_is_right() -> None:
    assert wrong_equation("12 * 3 = 36, then 36 + 4 = 41.") == "36 + 4 = 41"
    assert wrong_equation("10 / 3 = 3.33 and 2 × (3 + 4) = 14") is None
    assert wrong_equation("10 / 3 = 3.34") == "10 / 3 = 3.34"
    assert wrong_equation("x = 3 and 5 = 5") is None
