"""The ways to colour a map: by cluster, source, split, language, model, reason of exclusion, length, number of turns.

Every grouping gives each row one of a few labels. One that would give all rows the same label is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tunesmith.data.atlas.rows import MapRow

_MOST_LABELS = 23
"""With `other` 24: more colours cannot be told apart."""

_LINE = re.compile(r"[:#]\d+$")
_NUM_LENGTHS = 6


class Grouping(NamedTuple):
    """`of[i]` is the label of row i. Labels that stand in an order (short to long) have ordered = True."""

    name: str
    title: str
    labels: list[str]
    of: list[int]
    ordered: bool = False


def groupings(rows: Sequence[MapRow], language_of: Callable[[MapRow], str] | None) -> list[Grouping]:
    """Every grouping but the clusters that tells some rows from others. language_of None: no languages."""
    models = [_model(row) for row in rows]
    found = [
        by_value("source", "Source", [_LINE.sub("", row.source) or "unknown" for row in rows]),
        by_value("split", "Split", [row.split or "undecided" for row in rows]),
        by_value("reason", "Kept or excluded", [row.reason or "kept" for row in rows]),
        by_value("model", "Model", [model or "unknown" for model in models]),
        by_value("licence", "Licence", [row.licence or "unknown" for row in rows]),
        by_number("length", "Length", [row.num_characters for row in rows], "characters"),
        by_number("turns", "Turns", [sum(turn.role != "system" for turn in row.turns) for row in rows], "turns"),
    ]
    if language_of is not None:
        found.insert(3, by_value("language", "Language", [language_of(row) or "unknown" for row in rows]))
    return [grouping for grouping in found if len(grouping.labels) > 1]


def by_value(name: str, title: str, values: Sequence[str]) -> Grouping:
    """One label for each value, the most frequent first; beyond 23 values the rest is `other`."""
    counts = sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [value for value, _ in counts[:_MOST_LABELS]] if len(counts) > _MOST_LABELS + 1 else [v for v, _ in counts]
    number = {value: at for at, value in enumerate(shown)}
    rest = len(counts) - len(shown)
    labels = [*shown, f"other ({rest:,})"] if rest else shown
    return Grouping(name, title, labels, [number.get(value, len(shown)) for value in values])


def by_number(name: str, title: str, values: Sequence[int], unit: str) -> Grouping:
    """At most six ranges that hold about the same number of rows each."""
    array = np.asarray(values, np.int64)
    if not len(array):
        return Grouping(name, title, [], [], ordered=True)
    inner = np.quantile(array, np.linspace(0, 1, _NUM_LENGTHS + 1)[1:-1], method="inverted_cdf").astype(np.int64)
    tops = np.unique(np.append(inner, array.max()))  # each range ends at one of these, inclusive
    of = np.searchsorted(tops, array, side="left")
    lows = [int(array.min()), *(int(top) + 1 for top in tops[:-1])]
    labels = [
        f"{low:,} {unit}" if low == top else f"{low:,} to {int(top):,} {unit}"
        for low, top in zip(lows, tops, strict=True)
    ]
    return Grouping(name, title, labels, of.tolist(), ordered=True)


def _model(row: MapRow) -> str:
    model = row.metadata.get("model") or row.metadata.get("teacher")
    return model if isinstance(model, str) else ""
