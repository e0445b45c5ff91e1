"""What a small order says about a large one: arithmetic on the counts of a finished pilot. Asks nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Forecast(NamedTuple):
    """A pilot, and the full order as it would go at the same rates. seconds: None where no answer was timed."""

    kept: int
    parsed: int
    accept_rate: float  # kept rows per row that could be counted
    requests_made: int
    repaired: int  # of them, second tries
    tokens_per_row: float  # prompt and completion, per kept row
    usd_per_row: float
    rows: int  # of the full order
    requests: int
    tokens: int
    usd: float
    usd_left: float  # what the pilot has not paid yet
    seconds: float | None


def forecast(
    counts: Mapping[str, int], facts: Mapping[str, Any], num_rows: int, pace: tuple[float, float] | None
) -> Forecast:
    """From a generate artifact's counts and facts. pace: (seconds per answer, answers at a time) of the pilot."""
    kept = counts["kept"]
    tokens = facts["prompt_tokens"] + facts["completion_tokens"]
    scale = num_rows / kept
    requests = math.ceil(facts["num_requests"] * scale)
    usd = facts["cost_usd"] * scale
    return Forecast(
        kept=kept,
        parsed=counts["rows_parsed"],
        accept_rate=kept / max(1, counts["rows_parsed"] - counts.get("rejected_surplus", 0)),
        requests_made=facts["num_requests"],
        repaired=facts["num_repaired"],
        tokens_per_row=tokens / kept,
        usd_per_row=facts["cost_usd"] / kept,
        rows=num_rows,
        requests=requests,
        tokens=round(tokens * scale),
        usd=usd,
        usd_left=max(0.0, usd - facts["cost_usd"]),
        seconds=None if pace is None else (requests - facts["num_requests"]) * pace[0] / pace[1],
    )


def pace_of(artifact: Path) -> tuple[float, float] | None:
    """(mean seconds of an answer, answers written at a time) from the artifact's logs; None where nothing was timed."""
    spans: list[tuple[float, float]] = []  # (begin, end)
    for path in sorted((artifact / "logs").glob("*times.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry.get("seconds") is not None and entry.get("time") is not None:
                spans.append((entry["time"] - entry["seconds"], entry["time"]))
    if not spans:
        return None
    busy = sum(end - begin for begin, end in spans)
    covered, reached = 0.0, -math.inf
    for begin, end in sorted(spans):  # gaps between two runs are no working time
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy / len(spans), busy / covered if covered else 1.0
