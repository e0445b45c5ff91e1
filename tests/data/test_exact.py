"""Exact duplicates: the first stays, by normalised text, the same with and without compiled loops."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import exact
from tunesmith.data.exact import ExactIndex, find_exact, normalised

ALL = {"nfkc": True, "collapse_whitespace": True, "ignore_case": True}
NONE = dict.fromkeys(ALL, False)


def test_the_first_of_equal_texts_stays_and_names_the_others():
    texts = ["How do I reset it?", "other", " how do  I\treset it?\n", "Ｈow do I reset it?", "other", ""]
    matches = find_exact(texts, **ALL, num_threads=1)
    assert matches.dup_of.tolist() == [-1, -1, 0, 0, 1, -1]
    assert matches.score.tolist() == [0, 0, 1, 1, 1, 0]
    assert matches.cluster.tolist() == [0, 1, 0, 0, 1, 5]
    assert matches.kept.tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("option", "texts"),
    [("nfkc", ["ﬁne", "fine"]), ("collapse_whitespace", ["a  b", " a b "]), ("ignore_case", ["Straße", "STRASSE"])],
)
def test_each_option_alone_makes_its_pair_equal(option: str, texts: list[str]):
    assert find_exact(texts, **NONE, num_threads=1).num_duplicates == 0
    assert find_exact(texts, **{**NONE, option: True}, num_threads=1).dup_of.tolist() == [-1, 0]


TEXTS = st.lists(st.text(alphabet="aAbB \t\x1cßéﬁＡ狗", max_size=10), max_size=30)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0, 1, 5, 1000]))
def test_fingerprints_find_exactly_the_texts_that_are_equal(
    texts: list[str], nfkc: bool, collapse: bool, lower: bool, compiled_from: int
):
    options = {"nfkc": nfkc, "collapse_whitespace": collapse, "ignore_case": lower}
    keys = [normalised(text, **options) for text in texts]
    expected = [-1 if keys.index(key) == row else keys.index(key) for row, key in enumerate(keys)]
    with mock.patch.object(exact, "COMPILED_FROM", compiled_from):
        assert find_exact(iter(texts), **options, num_threads=1).dup_of.tolist() == expected


def test_shards_are_numbered_through_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "COMPILED_FROM", 9000)  # in the third shard, with repetitions before and after
    texts = [f"row {number % 7001}" for number in range(15000)]
    whole = find_exact(texts, **ALL, num_threads=2)
    index = ExactIndex(**ALL, num_threads=1)
    parts = [index.add(texts[start : start + 4000]) for start in range(0, 15000, 4000)]
    assert [row for part in parts for row in part.dup_of.tolist()] == whole.dup_of.tolist()
    assert [row for part in parts for row in part.cluster.tolist()] == whole.cluster.tolist()
    assert whole.num_duplicates == 15000 - 7001
    monkeypatch.setattr(exact, "compiled", lambda: False)
    assert find_exact(texts, **ALL, num_threads=1).dup_of.tolist() == whole.dup_of.tolist()
