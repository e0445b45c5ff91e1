"""Held-out rows: whole origins, the wanted share, the same choice whatever the order."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.split import decide_splits, hold_out, straddling
from tunesmith.types import Conversation, Message, Split


def row(text: str, origin: str = "", split: Split | None = None) -> Conversation:
    return Conversation(messages=[Message(role="user", content=text)], origin=origin, split=split)


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 5), min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_the_share_is_as_near_as_whole_origins_allow_and_neither_side_is_empty(
    num_rows: dict[str, int], fraction: float, rng_seed: int
):
    held = hold_out(num_rows, fraction, rng_seed)
    total = sum(num_rows.values())
    taken = sum(num_rows[origin] for origin in held)
    assert 0 < len(held) < len(num_rows)
    wanted = max(1, round(fraction * total))
    assert taken <= wanted or taken == min(num_rows.values())
    assert taken > wanted - max(num_rows.values()) or len(held) == len(num_rows) - 1
    shuffled = list(num_rows.items())
    random.Random(1).shuffle(shuffled)
    assert hold_out(dict(shuffled), fraction, rng_seed) == held


def test_single_rows_give_the_exact_share_and_the_seed_changes_which():
    num_rows = {f"row {n}": 1 for n in range(150)}
    held = hold_out(num_rows, 1 / 3, 17)
    assert len(held) == 50
    assert held != hold_out(num_rows, 1 / 3, 18)
    assert hold_out(num_rows, 0.0, 17) == set()
    assert hold_out({"only": 5}, 0.5, 17) == set()


def test_paraphrases_stay_together_and_decided_rows_stay_decided():
    rows = [row(f"{n} {k}", origin=str(n)) for n in range(20) for k in range(3)]
    rows += [row("t", "a", "test"), row("t2", "a"), row("r", "b", "train"), row("r2", "b")]
    split = decide_splits(rows, 0.25, 17)
    assert straddling(split) == set()
    assert [each.split for each in split[-4:]] == ["test", "test", "train", "train"]
    assert sum(each.split == "test" for each in split[:-4]) == 15
    assert [each.id for each in split] == [each.id for each in rows]
    assert rows[0].split is None  # the rows given are left as they are


def test_origins_whose_rows_were_marked_for_both_sides_are_found():
    marked = [
        row("a", "x", "test"),
        row("b", "x", "train"),
        row("c", "y", "train"),
        row("d", "y"),
        row("e", "z", "test"),
    ]
    assert straddling(marked) == {"x"}
    assert straddling([*marked, row("f", "z")]) == {"x", "z"}
