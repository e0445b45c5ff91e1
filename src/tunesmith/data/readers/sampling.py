"""`file#500`: N examples of a file, drawn evenly, the same ones on every machine.

Every example gets the digest of (seed, its place); the N lowest are taken, in the order of the file. So the draw depends on
nothing but the seed and the file, a larger N keeps what a smaller one took, and memory holds N examples.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from hashlib import blake2b

from tunesmith.types import Example, Excluded


class Sampled:
    """Passes bad rows on as they come and N examples at the end. `num_left_out` then tells how many were not drawn."""

    def __init__(self, examples: Iterator[Example | Excluded], size: int, rng_seed: int) -> None:
        self._examples = examples
        self._size = size
        self._rng_seed = rng_seed
        self.num_left_out = 0

    def __iter__(self) -> Iterator[Example | Excluded]:
        drawn: list[tuple[int, int, Example]] = []  # a heap, the highest digest on top
        number = 0
        for number, example in enumerate(self._examples):
            if isinstance(example, Excluded):
                yield example
                continue
            key = f"{self._rng_seed}\0{example.source}\0{number}".encode()
            entry = (-int.from_bytes(blake2b(key, digest_size=8).digest()), number, example)
            if len(drawn) < self._size:
                heapq.heappush(drawn, entry)
                continue
            self.num_left_out += 1
            if drawn:
                heapq.heappushpop(drawn, entry)
        for _, _, example in sorted(drawn, key=lambda entry: entry[1]):
            yield example
