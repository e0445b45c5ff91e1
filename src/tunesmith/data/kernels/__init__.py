"""Compiled loops over packed texts: numbers in, numbers out. Knows no rows, rules or recipes.

The modules here need numba (extra `data`); ask `compiled()` before importing one. Every loop has a plain counterpart
next to its caller, with the same results, which runs where numba is missing and in the tests that compare the two.
All loops release the interpreter lock, so chunks of rows run on threads side by side.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

ROWS_PER_CHUNK = 4096  # rows packed at once: some MB, whatever the number of rows
_CHARACTERS_PER_CHUNK = 1 << 22  # fewer rows where they are long


@cache
def compiled() -> bool:
    """Whether the compiled loops can be used."""
    return importlib.util.find_spec("numba") is not None


def map_chunks(texts: Iterable[str], work: Callable[[int, list[str]], Result], num_threads: int) -> Iterator[Result]:
    """work(first row, texts) of each chunk, answers in the order of the rows. Reads the texts once, and holds at most
    2 * num_threads + 1 chunks of them."""
    chunks = chunked(texts)
    if num_threads <= 1:
        for start, chunk in chunks:
            yield work(start, chunk)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for start, chunk in chunks:
            waiting.append(pool.submit(work, start, chunk))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        for each in waiting:
            yield each.result()


def chunked(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the first row, texts) of each chunk."""
    chunk: list[str] = []
    start, size = 0, 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == ROWS_PER_CHUNK or size >= _CHARACTERS_PER_CHUNK:
            yield start, chunk
            start, size, chunk = start + len(chunk), 0, []
    if chunk:
        yield start, chunk
