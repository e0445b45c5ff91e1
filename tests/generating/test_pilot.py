"""What a pilot says about the full order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.generating.pilot import forecast, pace_of

COUNTS = {"requests": 8, "kept": 20, "rows_parsed": 30, "rejected_rouge_l": 5, "rejected_surplus": 5}
FACTS = {"num_requests": 8, "num_repaired": 2, "prompt_tokens": 3000, "completion_tokens": 2000, "cost_usd": 0.04}


def test_the_full_order_goes_at_the_rates_of_the_pilot() -> None:
    found = forecast(COUNTS, FACTS, 5000, (3.0, 4.0))
    assert found.accept_rate == pytest.approx(20 / 25)  # surplus rows are no fault of the teacher
    assert (found.tokens_per_row, found.usd_per_row) == (250, 0.002)
    assert (found.requests, found.tokens) == (2000, 1_250_000)
    assert found.usd == pytest.approx(10)
    assert found.usd_left == pytest.approx(9.96)
    assert found.seconds == pytest.approx((2000 - 8) * 3 / 4)


def test_the_pace_is_the_mean_answer_and_how_many_were_written_at_a_time(tmp_path: Path) -> None:
    assert pace_of(tmp_path) is None
    (tmp_path / "logs").mkdir()
    entries = [{"time": 110, "seconds": 10}, {"time": 112, "seconds": 10}, {"time": 906, "seconds": 4}, {"key": "x"}]
    (tmp_path / "logs/answer_times.jsonl").write_text("\n".join(map(json.dumps, entries)))
    seconds, at_a_time = pace_of(tmp_path) or (0, 0)
    assert seconds == pytest.approx(8)
    assert at_a_time == pytest.approx(24 / 16)  # the gap between two runs is no working time
