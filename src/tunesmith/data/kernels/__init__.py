"""Compiled loops over packed texts: numbers in, numbers out. Knows no rows, rules or recipes.

The modules here need numba (extra `data`); ask `compiled()` before importing one. Every loop has a plain counterpart
next to its caller, with the same results, which runs where numba is missing and in the tests that compare the two.
All loops release the interpreter lock, so chunks of rows run on threads side by side.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

ROWS_PER_CHUNK = 4096  # rows packed at once: some MB, whatever the number of rows


@cache
def compiled() -> bool:
    """Whether the compiled loops can be used."""
    return importlib.util.find_spec("numba") is not None


def map_chunks(
    texts: Sequence[str], work: Callable[[int, Sequence[str]], Result], num_threads: int
) -> Iterator[Result]:
    """work(first row, texts) of each chunk, answers in the order of the rows. At most 2 * num_threads are in flight."""
    starts = range(0, len(texts), ROWS_PER_CHUNK)
    if num_threads <= 1 or len(starts) <= 1:
        for start in starts:
            yield work(start, texts[start : start + ROWS_PER_CHUNK])
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = []
        for start in starts:
            waiting.append(pool.submit(work, start, texts[start : start + ROWS_PER_CHUNK]))
            if len(waiting) >= 2 * num_threads:
                yield waiting.pop(0).result()
        for each in waiting:
            yield each.result()
