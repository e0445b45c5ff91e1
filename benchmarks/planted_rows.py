"""Synthetic examples with planted duplicates, for measurements of millions of rows.

    python benchmarks/planted_rows.py 10_000_000 rows.jsonl

Every row says in `planted` what it is: "new", "copy" (5 in 100: an earlier row as it was) or "near" (5 in 100: an earlier
row with one word of the prompt changed). Words are drawn from 50,000 invented ones with Zipf-like
weights, so that rows share common words as sentences do. The same seed gives the same file.
"""

from __future__ import annotations

import json
import random
import sys
from itertools import accumulate
from pathlib import Path

_NUM_WORDS = 50_000
_REMEMBERED = 100_000  # rows that copies are made of
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]


def write_rows(num_rows: int, path: Path, rng_seed: int = 7) -> dict[str, int]:
    """The number of rows of each kind."""
    rng = random.Random(rng_seed)
    words = list(dict.fromkeys("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(4 * _NUM_WORDS)))
    words = words[:_NUM_WORDS]
    weights = list(accumulate(1 / (rank + 20) for rank in range(len(words))))
    counts = dict.fromkeys(("new", "copy", "near"), 0)
    remembered: list[tuple[list[str], list[str]]] = []
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(num_rows):
            kind = rng.choices(("new", "copy", "near"), (90, 5, 5))[0] if len(remembered) > 100 else "new"
            if kind == "new":
                drawn = rng.choices(words, cum_weights=weights, k=rng.randint(20, 50))
                row = (drawn[:12], drawn[12:])
                if len(remembered) < _REMEMBERED:
                    remembered.append(row)
                else:
                    remembered[rng.randrange(_REMEMBERED)] = row
            else:
                row = remembered[rng.randrange(len(remembered))]
                if kind == "near":
                    prompt = list(row[0])
                    prompt[rng.randrange(len(prompt))] = rng.choice(words)
                    row = (prompt, row[1])
            counts[kind] += 1
            record = {"instruction": " ".join(row[0]), "output": " ".join(row[1]), "planted": kind}
            stream.write(json.dumps(record) + "\n")
    return counts


if __name__ == "__main__":
    print(write_rows(int(sys.argv[1]), Path(sys.argv[2])))
