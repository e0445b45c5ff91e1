"""The packer: exact conservation, nearly full packs, the same plan for the same seed, positions that restart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, RecipeError
from tunesmith.training.packing import plan_packs, plan_steps

lengths_and_room = st.integers(1, 70).flatmap(
    lambda room: st.tuples(st.lists(st.integers(1, room), max_size=120), st.just(room))
)


@given(lengths_and_room, st.integers(0, 5))
def test_every_sample_is_in_exactly_one_pack_and_no_pack_is_overfull(case, rng_seed):
    lengths, room = case
    plan = plan_packs(lengths, room, rng_seed)
    assert sorted(index for pack in plan.packs for index in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= room for pack in plan.packs)
    assert plan.num_tokens == sum(lengths)


@given(lengths_and_room, st.integers(1, 5), st.integers(0, 5))
def test_steps_and_tail_together_hold_every_sample_once(case, num_ranks, rng_seed):
    lengths, room = case
    plan = plan_steps(lengths, room, num_ranks, rng_seed)
    ranks = [rank for step in plan.steps for rank in step] + list(plan.tail)
    assert sorted(index for rank in ranks for index in rank) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in rank) <= room for rank in ranks)
    assert all(len(step) == num_ranks and all(step) for step in plan.steps)
    assert len(plan.tail) in (0, num_ranks)


@given(lengths_and_room)
def test_no_two_packs_could_have_been_one(case):
    lengths, room = case
    tokens = sorted(sum(lengths[index] for index in pack) for pack in plan_packs(lengths, room, 0).packs)
    assert len(tokens) < 2 or tokens[0] + tokens[1] > room


@given(lengths_and_room)
def test_the_number_of_packs_does_not_depend_on_the_seed(case):
    lengths, room = case
    assert len({len(plan_packs(lengths, room, seed).packs) for seed in range(4)}) == 1


def test_samples_at_exactly_the_pack_length_fill_a_pack_each():
    plan = plan_packs([8, 8, 8], 8, 0)
    assert sorted(plan.packs) == [(0,), (1,), (2,)]
    assert plan.efficiency == 1.0


def test_a_sample_above_the_pack_length_is_an_error_that_names_it():
    with pytest.raises(DataError, match="sample 2 has 9 tokens, expected 1 to pack_length = 8"):
        plan_packs([8, 1, 9], 8, 0)


def test_an_empty_sample_and_a_senseless_room_are_errors():
    with pytest.raises(DataError, match="sample 1 has 0 tokens"):
        plan_packs([8, 0], 8, 0)
    with pytest.raises(RecipeError, match="pack_length is 0"):
        plan_packs([1], 0, 0)
    with pytest.raises(RecipeError, match="num_ranks is 0"):
        plan_steps([1], 8, 0, 0)


def test_nothing_to_pack_is_an_empty_plan():
    assert plan_packs([], 8, 0).packs == ()
    assert plan_packs([], 8, 0).efficiency == 0.0


def test_a_short_sample_goes_where_it_leaves_the_least_room():
    plan = plan_packs([7, 6, 3, 2], 9, 0)
    assert sorted(tuple(sorted(pack)) for pack in plan.packs) == [(0, 3), (1, 2)]


def test_the_same_seed_gives_the_same_plan_and_another_seed_another_order():
    lengths = [3, 5, 2, 7, 3, 3, 1, 6] * 20
    assert plan_packs(lengths, 16, 4) == plan_packs(lengths, 16, 4)
    assert plan_packs(lengths, 16, 4) != plan_packs(lengths, 16, 5)


def test_openchat_lengths_need_at_most_36_full_steps_of_8_ranks(shared_data: Path):
    lengths = json.loads((shared_data / "multipack" / "testdata.json").read_text())
    plan = plan_steps(lengths, 16 * 2048, 8, 0)
    assert len(lengths) == 6144
    assert len(plan.steps) <= 36
    assert plan.efficiency > 0.996
    held = sum(lengths[index] for rank in plan.tail for index in rank)
    assert plan.num_tokens + held == 9_521_300
    work = np.array([[sum(lengths[i] ** 2 for i in rank) for rank in step] for step in plan.steps])
    assert (work.mean(axis=1) / work.max(axis=1)).mean() > 0.95  # ranks wait less than 5 % for the slowest
    tail = [sum(lengths[index] for index in rank) for rank in plan.tail]
    assert max(tail) < 1.05 * min(tail)


def test_a_hundred_thousand_lengths_fill_their_packs():
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 1, 100_000).astype(int) + 1, 2048)
    assert plan_packs(lengths, 2048, 0).efficiency > 0.999
