"""Equations in text: those that do not hold are named, and what only looks like one is left alone."""

from __future__ import annotations

import pytest

from tunesmith.data.arithmetic import first_wrong_equation


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So it costs 192*100=$1920", "'192*100=$1920' is wrong: it is 19200"),
        ("- 5 + 3 = 9", "'5 + 3 = 9' is wrong: it is 8"),
        ("First:\n- 5 + 3 = 9\n- 1 + 1 = 2", "'5 + 3 = 9' is wrong: it is 8"),
        ("one 5,000\n3 + 4 = 8 apples", "'3 + 4 = 8' is wrong: it is 7"),
        ("0.5 + 0.25 = 0.85", "'0.5 + 0.25 = 0.85' is wrong: it is 0.75"),
        ("He has 5 + 3 = 9 - so he wins", "'5 + 3 = 9' is wrong: it is 8"),
    ],
)
def test_a_slip_is_named_with_the_right_value(text: str, found: str) -> None:
    assert first_wrong_equation(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "a profit of $100, 000 x 10/100 = $10,000",
        "a profit of $100 000 x 10/100 = $10,000",
        "he uses 600 x 30 = 18 000 watts",
        "he uses 600 x 30 = 18, 000 watts",
        "5\u00a0×\u00a058\u00a0000 = 290\u00a0000",
        "it is before 0900, that is 0900-0130 = 0730 hours",
        "1430 - 0130 = 1300",
        "the trip took 1 1/2 * 60 = 90 minutes",
        "he works M + 4 + 2 = 8 hours",
        "2 students * 3 - 1= 5 students",
        "16+8 = 24 and 38 - 32 = 32 + x",
        "we have 21/7 = 90/x",
        "$2,430 – ($1,250 + $850) = $2,430 – $2,100",
        "30% * $2000 + $2000 = $600 + $2000",
    ],
)
def test_numbers_cut_by_a_space_times_of_day_and_longer_equations_are_no_slips(text: str) -> None:
    assert first_wrong_equation(text) is None
