"""Digests of rows as numbers in arrays: what millions of rows are compared by without being held.

Owns no rule of likeness: which texts are digested is identity.py's. `first_equal` sorts digests that are all there;
exact.ExactIndex takes texts as they come and normalises them, which a sort cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tunesmith.hashing import digest_text

Keys = NDArray[np.uint64]

_ID = re.compile(r"[0-9a-f]{16}")


def number_of(name: str) -> int:
    """64 bits of a name: an id is 16 hex digits, which are those bits; anything else is digested."""
    if _ID.fullmatch(name):
        return int(name, 16)
    return int(digest_text(name)[:16], 16)


def keys_array(digests: Iterable[str], num_bytes: int) -> Keys:
    """The first num_bytes of hex digests, as rows of 64-bit numbers: (number of digests, num_bytes / 8)."""
    joined = bytearray()
    for digest in digests:
        joined += bytes.fromhex(digest[: 2 * num_bytes])
    return np.frombuffer(joined, np.dtype(">u8")).astype(np.uint64).reshape(-1, num_bytes // 8)


def first_equal(keys: Keys) -> NDArray[np.int64]:
    """For each row of keys (N, K) the number of the first row that is equal to it; its own where there is none before."""
    order = np.lexsort(keys.T)  # stable: equal keys stay in the order of their rows
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1] if len(keys) else order
    return first
