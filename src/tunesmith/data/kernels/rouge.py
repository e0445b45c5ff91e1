"""ROUGE-L F1 of a text against a growing pool, exact, without looking at most of the pool. Knows word numbers only.

F1 = 2 LCS / (m + n) for m and n words. Four bounds, all safe, leave few pairs for the LCS itself:
  length   LCS <= min(m, n)
  prefix   to share `need` words, two texts sorted rare words first must share one within their first m - need + 1 and
           n - need + 1 words (Chaudhuri et al. 2006, Bayardo et al. 2007): only those are indexed and looked up
  place    a shared word at places i and j of two texts so sorted, the first they share, leaves LCS <= min(m - i, n - j)
           (Xiao et al. 2008); later ones leave less, so each may be asked as if it were the first
  words    LCS <= m - (words of x whose bit is missing in y's 64-bit signature), and the same for y
The LCS is bit-parallel (Hyyrö 2004), 64 words at once. Scores are made by rouge_score's own float expression.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from tunesmith.data.kernels.pool_arrays import LARGEST_BLOCK, LARGEST_SHORT
from tunesmith.data.kernels.words import jit

FULL, AGAIN = 1, 2  # why a loop stopped early: no room left; the order of the words is out of date


@intrinsic
def _popcount(typingctx, value):
    def generate(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@jit
def count_ones(value):
    return np.int64(_popcount(np.uint64(value)))  # pyright: ignore[reportCallIssue]


@jit
def f_measure(lcs, m, n):
    """The floats of tunesmith.text.rouge.f_measure."""
    if lcs <= 0:
        return 0.0
    precision = lcs / n
    recall = lcs / m
    return 2 * precision * recall / (precision + recall)


@jit
def least_lcs_above(threshold, m, n):
    """Smallest LCS whose F1 is above the threshold; more than min(m, n) where there is none."""
    lcs = max(1, int(threshold * (m + n) / 2) - 1)
    while lcs <= min(m, n) and f_measure(lcs, m, n) <= threshold:
        lcs += 1
    return lcs


@jit
def _signature(words):
    value = np.uint64(0)
    for word in words:
        value |= np.uint64(1) << ((np.uint64(word) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58))
    return value


@jit
def shared_at_most(x, m, y, n):
    """Upper bound of the LCS of texts of m and n words with signatures x and y."""
    return min(m - count_ones(x & ~y), n - count_ones(y & ~x))


@jit
def set_masks(words, scratch):
    """Bit i of the mask of word w says that word i of the query is w. Mask 0 is that of all words not in the query."""
    used = 0
    for i in range(len(words)):
        if scratch.slots[words[i]] == 0:
            used += 1
            scratch.slots[words[i]] = used
        scratch.masks[scratch.slots[words[i]], i >> 6] |= np.uint64(1) << np.uint64(i & 63)


@jit
def clear_masks(words, scratch):
    num_blocks = (len(words) + 63) >> 6
    for word in words:
        for k in range(num_blocks):
            scratch.masks[scratch.slots[word], k] = np.uint64(0)
    for word in words:
        scratch.slots[word] = 0


@jit
def lcs_length(m, other, scratch):
    """LCS of the query of m words whose masks are set and `other`."""
    num_blocks = (m + 63) >> 6
    masks, state = scratch.masks, scratch.state
    for k in range(num_blocks):
        state[k] = ~np.uint64(0)
    for word in other:
        carry = np.uint64(0)
        slot = scratch.slots[word]
        for k in range(num_blocks):
            v = state[k]
            u = v & masks[slot, k]
            added = v + u
            carried = np.uint64(added < v)
            total = added + carry
            carry = carried | np.uint64(total < added)
            state[k] = total | (v - u)
    lcs = 0
    for k in range(num_blocks):
        gone = ~state[k]
        if k == num_blocks - 1 and m & 63:
            gone &= (np.uint64(1) << np.uint64(m & 63)) - np.uint64(1)
        lcs += count_ones(gone)
    return lcs


@jit
def _sorted_rare_first(words, rank):
    keys = np.empty(len(words), np.int32)
    for i in range(len(words)):
        # Words met after the order was made are the rarest, the newest first.
        keys[i] = rank[words[i]] if words[i] < len(rank) else -words[i] - 1
    if len(keys) <= 48:
        for i in range(1, len(keys)):
            key = keys[i]
            j = i - 1
            while j >= 0 and keys[j] > key:
                keys[j + 1] = keys[j]
                j -= 1
            keys[j + 1] = key
    else:
        keys.sort()
    return keys


@jit
def _needs(threshold, m):
    """(shortest length n that can pass, least LCS for each n from there to the longest that can)."""
    shortest = m
    while shortest > 1 and f_measure(shortest - 1, m, shortest - 1) > threshold:
        shortest -= 1
    longest = m
    while f_measure(m, m, longest + 1) > threshold:
        longest += 1
    needs = np.empty(longest - shortest + 1, np.int32)
    for n in range(shortest, longest + 1):
        needs[n - shortest] = least_lcs_above(threshold, m, n)
    return shortest, needs


@jit
def tabulate_needs(threshold, largest):
    """_needs of every m up to `largest`, side by side: (shortest (M,), offsets (M + 1,), needs)."""
    shortest = np.zeros(largest + 1, np.int32)
    offsets = np.zeros(largest + 2, np.int64)
    for m in range(1, largest + 1):
        shortest[m], needs = _needs(threshold, m)
        offsets[m + 1] = offsets[m] + len(needs)
    table = np.empty(offsets[largest + 1], np.int32)
    for m in range(1, largest + 1):
        _, needs = _needs(threshold, m)
        table[offsets[m] : offsets[m + 1]] = needs
    return shortest, offsets, table


@jit
def _find(words, keys, num_probes, shortest, needs, threshold, rows, postings, scratch, query):
    """(nearest pool row with F1 above the threshold or -1, its F1). Of equals the lowest row."""
    m = len(words)
    signature = _signature(words)
    found, best, masked = -1, threshold, False
    for i in range(num_probes):
        if i > 0 and keys[i] == keys[i - 1]:
            continue
        word = postings.by_rank[keys[i]] if keys[i] >= 0 else -keys[i] - 1
        block = postings.last_block[word]
        while block >= 0:
            start = postings.block_start[block]
            for e in range(start, start + postings.block_size[block]):
                n = np.int64(postings.entries[e].length)
                if n == LARGEST_SHORT:
                    row = postings.entries[e].row
                    n = rows.offsets[row + 1] - rows.offsets[row]
                if n < shortest or n - shortest >= len(needs):
                    continue
                need = needs[n - shortest]
                if min(m - i, n - np.int64(postings.entries[e].place)) < need:
                    continue
                if shared_at_most(signature, m, postings.entries[e].signature, n) < need:
                    continue
                row = postings.entries[e].row
                if rows.seen[row] == query:
                    continue
                rows.seen[row] = query
                if not masked:
                    set_masks(words, scratch)
                    masked = True
                lcs = lcs_length(m, rows.words[rows.offsets[row] : rows.offsets[row + 1]], scratch)
                score = f_measure(lcs, m, n)
                if score > threshold and (score > best or (score == best and row < found)):
                    found, best = row, score
            block = postings.block_before[block]
    if masked:
        clear_masks(words, scratch)
    return found, best


@jit
def _index(row, words, keys, num_probes, signature, postings):
    """Put a row under each different word of its prefix. The caller has seen to the room."""
    for i in range(num_probes):
        if i > 0 and keys[i] == keys[i - 1]:
            continue
        word = postings.by_rank[keys[i]] if keys[i] >= 0 else -keys[i] - 1
        block = postings.last_block[word]
        if block < 0 or postings.block_size[block] == postings.block_room[block]:
            room = 2 if block < 0 else min(2 * postings.block_room[block], LARGEST_BLOCK)
            new = postings.sizes[0]
            postings.block_start[new] = postings.sizes[1]
            postings.block_size[new] = 0
            postings.block_room[new] = room
            postings.block_before[new] = block
            postings.sizes[0] += 1
            postings.sizes[1] += room
            postings.last_block[word] = new
            block = new
        e = postings.block_start[block] + postings.block_size[block]
        postings.entries[e].signature = signature
        postings.entries[e].row = row
        postings.entries[e].length = min(len(words), LARGEST_SHORT)
        postings.entries[e].place = min(i, LARGEST_SHORT)
        postings.block_size[block] += 1


@jit
def _has_room(num_probes, postings):
    return postings.sizes[0] + num_probes <= len(postings.block_start) and postings.sizes[
        1
    ] + LARGEST_BLOCK * num_probes <= len(postings.entries)


@jit
def _prefix(m, shortest, needs):
    """How many of the rare-first words must be indexed and looked up."""
    least = m
    for n in range(shortest, shortest + len(needs)):
        least = min(least, needs[n - shortest])
    return m - least + 1


@jit
def index_rows(first, last, threshold, rows, postings):
    """Index pool rows [first, last); returns the row it stopped at for lack of room."""
    for row in range(first, last):
        words = rows.words[rows.offsets[row] : rows.offsets[row + 1]]
        if len(words) == 0:
            continue
        shortest, needs = _needs(threshold, len(words))
        num_probes = _prefix(len(words), shortest, needs)
        if not _has_room(num_probes, postings):
            return row
        _index(row, words, _sorted_rare_first(words, postings.rank), num_probes, rows.signatures[row], postings)
    return last


@jit
def append_row(words, row, rows):
    """Write row number `row`; the caller has seen to the room."""
    begin = rows.offsets[row]
    for i in range(len(words)):
        rows.words[begin + i] = words[i]
    rows.offsets[row + 1] = begin + len(words)
    rows.signatures[row] = _signature(words)
    rows.seen[row] = -1


@jit
def search_rows(
    words, offsets, first, size, refresh_at, add, threshold, table, rows, postings, scratch, queries, found, scores
):
    """Look each text from `first` on up in the pool of `size` rows; where `add`, put it in if nothing is above the
    threshold. Returns (text it stopped at, rows in the pool, why: 0, FULL or AGAIN)."""
    short, short_offsets, short_needs = table
    for r in range(first, len(offsets) - 1):
        text = words[offsets[r] : offsets[r + 1]]
        m = len(text)
        if add and size >= refresh_at:
            return r, size, AGAIN
        if add and size >= len(rows.signatures):
            return r, size, FULL
        found[r], scores[r] = -1, 0.0
        if m > 0:
            if m < len(short):
                shortest, needs = short[m], short_needs[short_offsets[m] : short_offsets[m + 1]]
            else:
                shortest, needs = _needs(threshold, m)
            num_probes = _prefix(m, shortest, needs)
            if add and not _has_room(num_probes, postings):
                return r, size, FULL
            keys = _sorted_rare_first(text, postings.rank)
            row, score = _find(text, keys, num_probes, shortest, needs, threshold, rows, postings, scratch, queries + r)
            if row >= 0:
                found[r], scores[r] = row, score
            elif add:
                append_row(text, size, rows)
                _index(size, text, keys, num_probes, rows.signatures[size], postings)
                size += 1
        elif add:
            append_row(text, size, rows)
            size += 1
    return len(offsets) - 1, size, 0


@jit
def nearest_row(words, size, rows, scratch):
    """(row of the highest F1 among all, its F1); of equals the lowest row. Reads every signature, best bounds first."""
    m = len(words)
    signature = _signature(words)
    num_bins = 256
    bins = np.empty(size, np.int16)
    counts = np.zeros(num_bins + 1, np.int64)
    for row in range(size):
        n = rows.offsets[row + 1] - rows.offsets[row]
        bound = shared_at_most(signature, m, rows.signatures[row], n)
        bins[row] = min(num_bins - 1, int(2.0 * bound / (m + n) * (num_bins - 1) + 1)) if bound > 0 else 0
        counts[bins[row] + 1] += 1
    starts = np.cumsum(counts)
    order = np.empty(size, np.int32)
    for row in range(size):
        order[starts[bins[row]]] = row
        starts[bins[row]] += 1
    set_masks(words, scratch)
    found, best = 0, 0.0
    for i in range(size - 1, -1, -1):
        row = order[i]
        # Every bound of bin b is below b / (num_bins - 1).
        if bins[row] == 0 or bins[row] / (num_bins - 1) < best:
            break
        other = rows.words[rows.offsets[row] : rows.offsets[row + 1]]
        bound = f_measure(shared_at_most(signature, m, rows.signatures[row], len(other)), m, len(other))
        if bound < best or (bound == best and row > found):
            continue
        score = f_measure(lcs_length(m, other, scratch), m, len(other))
        if score > best or (score == best and score > 0 and row < found):
            found, best = row, score
    clear_masks(words, scratch)
    return found, best
