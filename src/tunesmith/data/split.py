"""Which rows are held out: by origin, so that a seed and its paraphrases never straddle, and the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tunesmith.hashing import digest_json
from tunesmith.types import Conversation


def hold_out(num_rows: Mapping[str, int], fraction: float, rng_seed: int) -> set[str]:
    """The origins that hold `fraction` of the rows, as nearly as whole origins allow.

    num_rows: rows of each origin. The order is that of a hash of origin and seed, so it does not depend on the order
    of the rows. For a fraction above 0 and at least two origins, one is held out and one is left in any case.
    """
    if fraction <= 0 or len(num_rows) < 2:
        return set()
    order = sorted(num_rows, key=lambda origin: digest_json([origin, rng_seed]))
    wanted = max(1, round(fraction * sum(num_rows.values())))
    held: set[str] = set()
    taken = 0
    for origin in order:
        if len(held) < len(order) - 1 and taken + num_rows[origin] <= wanted:
            held.add(origin)
            taken += num_rows[origin]
    return held or {min(order, key=lambda origin: (num_rows[origin], order.index(origin)))}


def decide_splits(conversations: Sequence[Conversation], fraction: float, rng_seed: int) -> list[Conversation]:
    """The same rows with `split` set on each: what was decided stays, an undecided row follows its origin where that has
    a test row, and of the other undecided rows `fraction` is held out."""
    tested = {row.origin for row in conversations if row.split == "test"}
    trained = {row.origin for row in conversations if row.split == "train"}
    free = Counter(row.origin for row in conversations if row.split is None and row.origin not in tested | trained)
    tested |= hold_out(free, fraction, rng_seed)
    return [
        row.model_copy(update={"split": "test" if row.origin in tested else "train"}) if row.split is None else row
        for row in conversations
    ]


def straddling(conversations: Iterable[Conversation]) -> set[str]:
    """Origins that have test rows and others too (their author marked them so)."""
    splits: dict[str, set[str | None]] = {}
    for row in conversations:
        splits.setdefault(row.origin, set()).add(row.split)
    return {origin for origin, found in splits.items() if "test" in found and len(found) > 1}
