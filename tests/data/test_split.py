"""Held-out rows: whole origins, the wanted share, the same choice whatever the order."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.keys import number_of
from tunesmith.data.split import SIDE_OF, TEST, TRAIN, UNDECIDED, decide_splits, hold_out, straddling
from tunesmith.types import Split


def held_of(num_rows: dict[int, int], fraction: float, rng_seed: int) -> set[int]:
    origins = np.array(list(num_rows), np.uint64)
    rows = np.array(list(num_rows.values()), np.int64)
    return set(hold_out(origins, rows, fraction, rng_seed).tolist())


def table(*rows: tuple[str, Split | None]) -> tuple[np.ndarray, np.ndarray]:
    origins = np.array([number_of(origin) for origin, _ in rows], np.uint64)
    return origins, np.array([SIDE_OF[split] for _, split in rows], np.uint8)


@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 5), min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_the_share_is_as_near_as_whole_origins_allow_and_neither_side_is_empty(
    num_rows: dict[int, int], fraction: float, rng_seed: int
):
    held = held_of(num_rows, fraction, rng_seed)
    total = sum(num_rows.values())
    taken = sum(num_rows[origin] for origin in held)
    assert 0 < len(held) < len(num_rows)
    wanted = max(1, round(fraction * total))
    assert taken <= wanted or taken == min(num_rows.values())
    assert taken > wanted - max(num_rows.values()) or len(held) == len(num_rows) - 1
    shuffled = list(num_rows.items())
    random.Random(1).shuffle(shuffled)
    assert held_of(dict(shuffled), fraction, rng_seed) == held


def test_single_rows_give_the_exact_share_and_the_seed_changes_which():
    num_rows = {number_of(f"row {n}"): 1 for n in range(150)}
    held = held_of(num_rows, 1 / 3, 17)
    assert len(held) == 50
    assert held != held_of(num_rows, 1 / 3, 18)
    assert held_of(num_rows, 0.0, 17) == set()
    assert held_of({3: 5}, 0.5, 17) == set()


def test_paraphrases_stay_together_and_decided_rows_stay_decided():
    marked: list[tuple[str, Split | None]] = [("a", "test"), ("a", None), ("b", "train"), ("b", None)]
    origins, sides = table(*((str(n), None) for n in range(20) for _ in range(3)), *marked)
    decided = decide_splits(origins, sides, 0.25, 17)
    assert straddling(origins, decided).tolist() == []
    assert decided[-4:].tolist() == [TEST, TEST, TRAIN, TRAIN]
    assert (decided[:-4] == TEST).sum() == 15
    assert sides[0] == UNDECIDED  # what was given is left as it is


def test_origins_whose_rows_were_marked_for_both_sides_are_found():
    marked: list[tuple[str, Split | None]] = [
        ("x", "test"), ("x", "train"), ("y", "train"), ("y", None), ("z", "test"),
    ]  # fmt: skip
    assert straddling(*table(*marked)).tolist() == [number_of("x")]
    assert sorted(straddling(*table(*marked, ("z", None))).tolist()) == sorted([number_of("x"), number_of("z")])
