"""Word n-grams of evaluation items, and what of each item stands in a text. Knows numbers only.

Every hit of the table is compared word by word, so that two n-grams of one hash are not mistaken for each other.
Legend: W words, I items, R rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tunesmith.data.kernels.words import jit, mix

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FILTER_BITS = 1 << 23  # 1 MB: most n-grams of a text end here, in the cache


class Grams(NamedTuple):
    """The items' n-grams: an open-addressing table into places, which are grouped by n-gram, the last place first."""

    words: np.ndarray  # (W,) uint64: word hashes of all items
    item_of: np.ndarray  # (W,) int32: which item a place belongs to
    item_offsets: np.ndarray  # (I + 1,) int64
    lengths: np.ndarray  # (L,) int64: the n of the n-grams, shorter ones for items of fewer words
    filter: np.ndarray  # (_FILTER_BITS / 64,) uint64
    table: np.ndarray  # (slots,) int32: group or -1
    keys: np.ndarray  # (groups,) uint64
    group_offsets: np.ndarray  # (groups + 1,) int64
    places: np.ndarray  # (n-grams,) int64: index into words


class Scratch(NamedTuple):
    """What a search writes down per item and place. Its rows and words are numbered through all calls, so that nothing
    has to be wiped between them."""

    counts_before: np.ndarray  # (2,) int64: rows, words of the calls before
    covered: np.ndarray  # (W,) int64: row that covered the place last
    run_place: np.ndarray  # (W,) int64: word of the text where the last hit at the place began
    run_size: np.ndarray  # (W,) int32
    item_row: np.ndarray  # (I,) int64: row that met the item last
    counts: np.ndarray  # (I,) int32: words of the item covered
    longest: np.ndarray  # (I,) int32
    longest_end: np.ndarray  # (I,) int64
    touched: np.ndarray  # (I,) int32


def scratch_for(grams: Grams) -> Scratch:
    """About 20 bytes per word of the items."""
    num_words, num_items = len(grams.words), len(grams.item_offsets) - 1
    return Scratch(
        np.zeros(2, np.int64),
        covered=np.full(num_words, -1, np.int64),
        run_place=np.full(num_words, -2, np.int64),
        run_size=np.zeros(num_words, np.int32),
        item_row=np.full(num_items, -1, np.int64),
        counts=np.zeros(num_items, np.int32),
        longest=np.zeros(num_items, np.int32),
        longest_end=np.zeros(num_items, np.int64),
        touched=np.empty(num_items, np.int32),
    )


@jit
def _gram(words, start, length):
    value = np.uint64(length)
    for k in range(start, start + length):
        value = value * _STEP + words[k]
    return mix(value)


@jit
def _gram_keys(words, item_offsets, ngram, shortest, keys, places):
    number = 0
    for item in range(len(item_offsets) - 1):
        begin, end = item_offsets[item], item_offsets[item + 1]
        length = min(ngram, end - begin)
        if length < shortest:
            continue
        for place in range(end - length, begin - 1, -1):
            keys[number] = _gram(words, place, length)
            places[number] = place
            number += 1
    return number


@jit
def _fill(keys, table, bits):
    mask = np.uint64(len(table) - 1)
    for group in range(len(keys)):
        slot = keys[group] & mask
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = group
        bit = keys[group] >> np.uint64(41)
        bits[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))


def build(words: np.ndarray, item_offsets: np.ndarray, ngram: int, shortest: int) -> Grams:
    """The n-grams of items of at least `shortest` words; an item of fewer than `ngram` words is one n-gram whole."""
    sizes = np.diff(item_offsets)
    keys, places = np.empty(len(words), np.uint64), np.empty(len(words), np.int64)
    number = _gram_keys(words, item_offsets, ngram, shortest, keys, places)
    keys, places = keys[:number], places[:number]
    order = np.lexsort((-places, keys))
    keys, places = keys[order], places[order]
    groups, begins = np.unique(keys, return_index=True)
    table = np.full(max(64, 1 << (2 * len(groups)).bit_length()), -1, np.int32)
    bits = np.zeros(_FILTER_BITS // 64, np.uint64)
    _fill(groups, table, bits)
    used = sizes[sizes >= shortest]
    lengths = np.unique(np.minimum(used, ngram)).astype(np.int64)
    item_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    offsets = np.append(begins, number).astype(np.int64)
    return Grams(words, item_of, item_offsets, lengths, bits, table, groups, offsets, places)


@jit
def _group_of(key, grams):
    bit = key >> np.uint64(41)
    if not (grams.filter[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
        return -1
    mask = np.uint64(len(grams.table) - 1)
    slot = key & mask
    while grams.table[slot] >= 0:
        if grams.keys[grams.table[slot]] == key:
            return np.int64(grams.table[slot])
        slot = (slot + np.uint64(1)) & mask
    return -1


@jit
def search(words, offsets, grams, scratch, ngram, long_ngram, max_coverage, removed, items, coverages, runs):
    """For each text: `items` the item of the largest covered share (of equals the longest run, then the lowest item) or
    -1, `coverages` that share; `removed` the same among the items that remove the text, or -1; `runs` (R, 2) the words
    [start, end) of the longest run shared with the removing item."""
    rows_before, words_before = scratch.counts_before
    counts, longest = scratch.counts, scratch.longest
    for r in range(len(offsets) - 1):
        num_touched = 0
        for length in grams.lengths:
            for place in range(offsets[r], offsets[r + 1] - length + 1):
                group = _group_of(_gram(words, place, length), grams)
                if group >= 0:
                    num_touched = _note_hits(
                        group, place, length, words, offsets[r], rows_before + r, words_before, ngram, grams, scratch, num_touched
                    )  # fmt: skip
        items[r], removed[r], coverages[r] = -1, -1, 0.0
        best, worst = -1, -1
        for t in range(num_touched):
            item = scratch.touched[t]
            share = counts[item] / (grams.item_offsets[item + 1] - grams.item_offsets[item])
            if best < 0 or _before(share, longest, item, best, counts, grams):
                best = item
            if (share > max_coverage or longest[item] >= long_ngram) and (
                worst < 0 or _before(share, longest, item, worst, counts, grams)
            ):
                worst = item
        if best >= 0:
            items[r] = best
            coverages[r] = counts[best] / (grams.item_offsets[best + 1] - grams.item_offsets[best])
        if worst >= 0:
            removed[r] = worst
            coverages[r] = counts[worst] / (grams.item_offsets[worst + 1] - grams.item_offsets[worst])
            runs[r, 0], runs[r, 1] = scratch.longest_end[worst] - longest[worst], scratch.longest_end[worst]
    scratch.counts_before[0] += len(offsets) - 1
    scratch.counts_before[1] += len(words)


@jit
def _note_hits(group, place, length, words, text_begin, row, words_before, ngram, grams, scratch, num_touched):
    """Write down every place of the items where the n-gram at `place` of the text stands; returns the items touched."""
    for g in range(grams.group_offsets[group], grams.group_offsets[group + 1]):
        there = grams.places[g]
        item = grams.item_of[there]
        size = grams.item_offsets[item + 1] - grams.item_offsets[item]
        same = length == min(ngram, size)
        for k in range(length):
            same = same and words[place + k] == grams.words[there + k]
        if not same:
            continue
        if scratch.item_row[item] != row:
            scratch.item_row[item] = row
            scratch.counts[item], scratch.longest[item], scratch.longest_end[item] = 0, 0, 0
            scratch.touched[num_touched] = item
            num_touched += 1
        for k in range(there, there + length):
            if scratch.covered[k] != row:
                scratch.covered[k] = row
                scratch.counts[item] += 1
        # The places of a group come last first, so the hit one word before is still the previous word's.
        goes_on = place > text_begin and there > grams.item_offsets[item]
        goes_on = goes_on and scratch.run_place[there - 1] == words_before + place - 1
        scratch.run_size[there] = scratch.run_size[there - 1] + 1 if goes_on else length
        scratch.run_place[there] = words_before + place
        if scratch.run_size[there] > scratch.longest[item]:
            scratch.longest[item], scratch.longest_end[item] = scratch.run_size[there], place + length - text_begin
    return num_touched


@jit
def _before(share, longest, item, other, counts, grams):
    """Whether `item` is the better answer than `other`: larger share, then longer run, then lower number."""
    share_of_other = counts[other] / (grams.item_offsets[other + 1] - grams.item_offsets[other])
    if share != share_of_other:
        return share > share_of_other
    if longest[item] != longest[other]:
        return longest[item] > longest[other]
    return item < other
