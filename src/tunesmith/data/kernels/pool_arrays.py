"""The arrays of the compiled pool: what they hold, and how they grow. Knows no score.

numba reads the named tuples; a larger array means a new tuple around the same others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tunesmith.data.kernels.words import grown

LARGEST_BLOCK = 256  # entries
LARGEST_SHORT = 65535  # a length of this stands for itself and all greater ones, a place for itself and all behind it
_POSTING = np.dtype([("signature", np.uint64), ("row", np.int32), ("length", np.uint16), ("place", np.uint16)])


class Rows(NamedTuple):
    """The pool's texts as word numbers."""

    offsets: np.ndarray  # (rows + 1,) int64
    words: np.ndarray  # (words,) int32
    signatures: np.ndarray  # (rows,) uint64
    seen: np.ndarray  # (rows,) int64: the query that met the row last


class Postings(NamedTuple):
    """Per word the pool rows that have it in their prefix, in blocks that double."""

    rank: np.ndarray  # (ranked words,) int32: place in the order, rare words first
    by_rank: np.ndarray  # (ranked words,) int32
    last_block: np.ndarray  # (vocabulary,) int32, -1 for none
    block_start: np.ndarray  # (blocks,) int64, into entries
    block_size: np.ndarray  # (blocks,) int32, entries in use
    block_room: np.ndarray  # (blocks,) int32
    block_before: np.ndarray  # (blocks,) int32, -1 for none
    entries: np.ndarray  # (entries,) of _POSTING
    sizes: np.ndarray  # (2,) int64: blocks, entries in use


class Scratch(NamedTuple):
    """Room the loops work in; between two calls all zero, `state` apart."""

    slots: np.ndarray  # (vocabulary,) int32
    masks: np.ndarray  # (1 + longest query, blocks of 64 words) uint64
    state: np.ndarray  # (blocks of 64 words,) uint64


def empty_rows() -> Rows:
    """A pool without rows and some room."""
    return Rows(
        np.zeros(1025, np.int64), np.zeros(1 << 14, np.int32), np.zeros(1024, np.uint64), np.zeros(1024, np.int64)
    )


def with_room(rows: Rows, num_rows: int, num_words: int) -> Rows:
    """The same pool with room for so many rows and words in all."""
    return Rows(
        grown(rows.offsets, num_rows + 1),
        grown(rows.words, num_words),
        grown(rows.signatures, num_rows),
        grown(rows.seen, num_rows),
    )


def empty_postings(counts: np.ndarray) -> Postings:
    """An index without rows whose order is by these counts of the words (vocabulary,), rare first."""
    by_rank = np.argsort(counts, kind="stable").astype(np.int32)
    rank = np.empty(len(counts), np.int32)
    rank[by_rank] = np.arange(len(counts), dtype=np.int32)
    num_blocks = max(1024, len(counts))
    last = np.full(max(1024, len(counts)), -1, np.int32)
    return Postings(
        rank,
        by_rank,
        last,
        block_start=np.zeros(num_blocks, np.int64),
        block_size=np.zeros(num_blocks, np.int32),
        block_room=np.zeros(num_blocks, np.int32),
        block_before=np.zeros(num_blocks, np.int32),
        entries=np.zeros(1 << 16, _POSTING),
        sizes=np.zeros(2, np.int64),
    )


def with_vocabulary(postings: Postings, size: int) -> Postings:
    """The same index with a place for each word below `size`."""
    before = len(postings.last_block)
    last = grown(postings.last_block, size)
    if len(last) > before:
        last[before:] = -1
    return postings._replace(last_block=last)


def with_more_room(postings: Postings, num_probes: int) -> Postings:
    """The same index with room for a row of `num_probes` index words."""
    num_blocks = int(postings.sizes[0]) + num_probes
    return postings._replace(
        block_start=grown(postings.block_start, num_blocks),
        block_size=grown(postings.block_size, num_blocks),
        block_room=grown(postings.block_room, num_blocks),
        block_before=grown(postings.block_before, num_blocks),
        entries=grown(postings.entries, int(postings.sizes[1]) + LARGEST_BLOCK * num_probes),
    )


def scratch_for(scratch: Scratch | None, vocabulary: int, longest: int) -> Scratch:
    """Scratch for queries of at most `longest` words; the given one where it is large enough."""
    blocks = (longest + 63) // 64
    if scratch is None or len(scratch.masks) <= longest:
        room = np.zeros((longest + 1, blocks), np.uint64)
        slots = scratch.slots if scratch else np.zeros(1024, np.int32)
        scratch = Scratch(slots, room, np.zeros(max(1, blocks), np.uint64))
    return scratch._replace(slots=grown(scratch.slots, vocabulary))
