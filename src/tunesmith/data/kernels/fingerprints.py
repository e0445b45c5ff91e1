"""128-bit fingerprints of whole texts, and the table that names the first text of each. Knows no options but ASCII's.

The loop normalises ASCII texts itself; all others come prepared. Two 64-bit chains over the characters, eight ASCII ones or two others at a time, finished by
MurmurHash3's mixer: for a billion different texts the chance of one false match is about 1e-21.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from tunesmith.data.kernels.words import jit, mix

_SPACE = 256


def fingerprints(
    codes: np.ndarray, offsets: np.ndarray, ascii_rows: np.ndarray, collapse: bool, lower: bool
) -> np.ndarray:
    """(R, 2) uint64 of the texts. ascii_rows (R,): where whitespace and case are still to be folded."""
    out = np.empty((len(offsets) - 1, 2), np.uint64)
    _fingerprint(codes, offsets, ascii_rows, _fold_table(collapse, lower), out)
    return out


@cache
def _fold_table(collapse: bool, lower: bool) -> np.ndarray:
    """What each ASCII character becomes; _SPACE for those that str.split splits at, where they collapse."""
    table = np.arange(128, dtype=np.uint16)
    if lower:
        table[65:91] += 32
    if collapse:
        table[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = _SPACE
    return table


@jit
def _fingerprint(codes, offsets, ascii_rows, table, out):
    longest = np.max(offsets[1:] - offsets[:-1])
    narrow = np.zeros((longest // 8 + 2) * 8, np.uint8)
    wide = np.zeros((longest // 2 + 2) * 2, np.uint32)
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        length = 0
        is_narrow = True
        if ascii_rows[row]:
            before = np.uint16(_SPACE)
            for i in range(begin, end):
                code = table[codes[i]]
                narrow[length] = np.uint8(code & 127) if code != _SPACE else np.uint8(32)
                # A space after a space, or before the first word, is written over by what follows.
                length += not (code == _SPACE and before == _SPACE)
                before = code
            if length > 0 and before == _SPACE:
                length -= 1
        else:
            length = end - begin
            for i in range(length):
                code = np.uint32(codes[begin + i])
                wide[i] = code
                is_narrow &= code < 128
            if is_narrow:
                for i in range(length):
                    narrow[i] = wide[i]
        if is_narrow:
            narrow[length : length + 8] = 0
            _chains(narrow.view(np.uint64), (length + 7) // 8, length, out[row])
        else:
            wide[length : length + 2] = 0
            _chains(wide.view(np.uint64), (length + 1) // 2, -length, out[row])


@jit
def _chains(values, number, length, out):
    first = np.uint64(0x243F6A8885A308D3) ^ np.uint64(length)
    second = np.uint64(0x13198A2E03707344) + np.uint64(length)
    for i in range(number):
        first = (first ^ values[i]) * np.uint64(0x9E3779B97F4A7C15)
        first ^= first >> np.uint64(29)
        second = (second + values[i]) * np.uint64(0xD6E8FEB86659FD93)
        second ^= second >> np.uint64(32)
    out[0] = mix(first)
    out[1] = mix(second)


@jit
def insert(keys, values, table, size, found):
    """Look up each fingerprint (R, 2) and put in the new ones: found[r] is the first row with it.

    table (slots,) int32 of row numbers, values (rows, 2) the fingerprints of all rows before; at most half full.
    """
    mask = np.uint64(len(table) - 1)
    for r in range(len(keys)):
        row = size + r
        values[row, 0], values[row, 1] = keys[r, 0], keys[r, 1]
        slot = keys[r, 0] & mask
        while True:
            other = table[slot]
            if other < 0:
                table[slot] = row
                found[r] = -1
                break
            if values[other, 0] == keys[r, 0] and values[other, 1] == keys[r, 1]:
                found[r] = other
                break
            slot = (slot + np.uint64(1)) & mask


@jit
def refill(table, values, firsts, size):
    """Fill an empty table with the rows that are the first of their text: firsts (rows,) bool."""
    mask = np.uint64(len(table) - 1)
    for row in range(size):
        if firsts[row]:
            slot = values[row, 0] & mask
            while table[slot] >= 0:
                slot = (slot + np.uint64(1)) & mask
            table[slot] = row
