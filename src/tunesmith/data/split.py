"""Which rows are held out: by origin, so that a seed and its paraphrases never straddle, and the same on every machine.

Works on numbers, so that millions of rows need no more than their origins (keys.number_of) and sides in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.keys import Keys
from tunesmith.hashing import digest_json
from tunesmith.types import Split

Sides = NDArray[np.uint8]

UNDECIDED, TRAIN, TEST = 0, 1, 2
SIDE_OF: dict[Split | None, int] = {None: UNDECIDED, "train": TRAIN, "test": TEST}
SPLIT_OF: dict[int, Split | None] = {side: split for split, side in SIDE_OF.items()}


def hold_out(origins: Keys, num_rows: NDArray[np.int64], fraction: float, rng_seed: int) -> Keys:
    """The origins (each named once) that hold `fraction` of the rows, as nearly as whole origins allow, ascending.

    num_rows: rows of each origin. The order is that of a hash of origin and seed, so it does not depend on the order
    of the rows. For a fraction above 0 and at least two origins, one is held out and one is left in any case.
    """
    if fraction <= 0 or len(origins) < 2:
        return origins[:0]
    hashes = (digest_json([f"{origin:016x}", rng_seed])[:32] for origin in origins.tolist())
    hashed = np.frombuffer(b"".join(map(bytes.fromhex, hashes)), np.dtype(">u8")).reshape(-1, 2)
    order = np.lexsort((hashed[:, 1], hashed[:, 0]))
    wanted = max(1, round(fraction * int(num_rows.sum())))
    held: list[int] = []
    taken = 0
    for place, rows in zip(order.tolist(), num_rows[order].tolist(), strict=True):
        if taken == wanted or len(held) == len(order) - 1:
            break
        if taken + rows <= wanted:
            held.append(place)
            taken += rows
    smallest = order[np.argmin(num_rows[order])]  # every origin alone is more than the fraction
    return np.sort(origins[held or [smallest]])


def decide_splits(origins: Keys, sides: Sides, fraction: float, rng_seed: int) -> Sides:
    """The side of each row: what was decided stays, an undecided row follows its origin where that has a test row, and of
    the other undecided rows `fraction` is held out."""
    decided = np.unique(origins[sides != UNDECIDED])
    tested = np.unique(origins[sides == TEST])
    undecided = origins[sides == UNDECIDED]
    free, num_rows = np.unique(undecided[~np.isin(undecided, decided)], return_counts=True)
    tested = np.union1d(tested, hold_out(free, num_rows, fraction, rng_seed))
    follow = np.where(np.isin(origins, tested), TEST, TRAIN).astype(np.uint8)
    return np.where(sides == UNDECIDED, follow, sides).astype(np.uint8)


def straddling(origins: Keys, sides: Sides) -> Keys:
    """Origins that have test rows and others too (their author marked them so)."""
    return np.intersect1d(origins[sides == TEST], origins[sides != TEST])
