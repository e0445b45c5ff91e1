"""Numbers stand for digests: equal where the digests are, and the first of equal ones is found."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.keys import first_equal, keys_array, number_of
from tunesmith.hashing import digest_text

HEX = st.text("0123456789abcdef", min_size=16, max_size=16)
NAMES = st.text(max_size=20)
FEW = st.integers(0, 3)


@given(HEX)
def test_an_id_is_its_own_bits(name: str):
    assert f"{number_of(name):016x}" == name


@given(NAMES)
def test_any_name_has_64_bits_that_name_it_again(name: str):
    number = number_of(name)
    assert 0 <= number < 1 << 64
    assert number_of(f"{number:016x}") == number


def test_names_that_only_look_like_ids_are_digested_and_differ():
    names = ["0123456789abcdef", "0123456789ABCDEF", "0123456789abcdef\n", "0123456789abcde", " 0123456789abcdef", ""]
    assert len({number_of(name) for name in names}) == len(names)
    assert number_of("seed 1") != number_of("seed 2")


@given(st.lists(NAMES, max_size=20), st.sampled_from([8, 16, 24, 32]))
def test_an_array_holds_the_digests_to_the_bit_and_in_their_order(names: list[str], num_bytes: int):
    digests = [digest_text(name) for name in names]
    keys = keys_array(iter(digests), num_bytes)
    assert keys.shape == (len(names), num_bytes // 8) and keys.dtype == np.uint64
    spelt = ["".join(f"{number:016x}" for number in row) for row in keys.tolist()]
    assert spelt == [digest[: 2 * num_bytes] for digest in digests]


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(FEW, min_size=width, max_size=width), max_size=40)))
def test_the_first_of_equal_rows_is_named_by_all_of_them(rows: list[list[int]]):
    keys = np.array(rows, np.uint64).reshape(len(rows), -1 if rows else 1)
    first = first_equal(keys)
    assert [rows[place] for place in first.tolist()] == rows
    assert all(earlier <= place for place, earlier in enumerate(first.tolist()))
    assert len(set(first.tolist())) == len({tuple(row) for row in rows})


@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_which_rows_are_equal_does_not_depend_on_their_order(rows: list[tuple[int, int]], random: object):
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    here = first_equal(np.array(rows, np.uint64))
    there = first_equal(np.array([rows[place] for place in order], np.uint64))
    groups = {frozenset(np.flatnonzero(here == first).tolist()) for first in here.tolist()}
    again = {frozenset(order[place] for place in np.flatnonzero(there == first).tolist()) for first in there.tolist()}
    assert again == groups
