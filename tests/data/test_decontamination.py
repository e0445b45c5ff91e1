"""Contamination: which item, how much of it, which span, against a plain count over sets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import decontamination
from tunesmith.data.matches import Matches
from tunesmith.text.rouge import unicode_tokens

pytest.importorskip("numba")

from tunesmith.data.decontamination import SHORTEST, EvaluationIndex


@pytest.fixture(autouse=True, scope="module")
def compiled_from_the_first_row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decontamination, "COMPILED_FROM", 0)
        yield


def find(items: list[str], texts: list[str], num_threads: int = 1) -> Matches:
    return EvaluationIndex(items, ngram=8, long_ngram=13, num_threads=num_threads).find(texts, max_coverage=0.5)


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_more_than_half_of_an_item_removes_and_exactly_half_does_not():
    items = ["unrelated words that stand in no text at all here", words(0, 20)]
    texts = [f"x {words(0, 10)} y", f"x, {words(3, 14)}! y", "nothing in common"]
    matches = find(items, texts)
    assert matches.dup_of.tolist() == [-1, 1, -1]
    assert matches.score.tolist() == [0.5, 0.55, 0.0]
    assert matches.items is not None and matches.items.tolist() == [1, 1, -1]
    assert matches.spans is not None
    assert texts[1][slice(*matches.spans[1])] == words(3, 14)
    assert matches.spans[0].tolist() == [-1, -1]


def test_a_run_of_thirteen_words_removes_whatever_the_share():
    long_item = words(0, 100)
    matches = find([long_item], [f"x {words(5, 17)} y", f"x {words(5, 18)} y"])
    assert matches.dup_of.tolist() == [-1, 0]
    assert matches.score.tolist() == [0.12, 0.13]
    pieces = f"{words(5, 13)} x {words(40, 48)} y"  # sixteen words, but in two runs
    assert find([long_item], [pieces]).dup_of.tolist() == [-1]


def test_short_items_match_whole_and_very_short_ones_only_a_whole_text():
    items = ["What is the capital of France?", "yes", "Paris it is"]
    texts = ["Tell me: what is the capital of france!", "What is the capital of Spain?", "yes, of course", "Yes."]
    assert find(items, texts).dup_of.tolist() == [0, -1, -1, 1]


def test_the_span_is_in_the_characters_of_the_text_as_it_was_given():
    item = "请把下面这段文字翻译成英文谢谢你"
    text = "ﬁrst① 问题：请把下面这段，文字翻译成英文。再见"
    matches = find([item], [text])
    assert matches.dup_of.tolist() == [0]
    assert matches.score[0] == 13 / 16
    assert matches.spans is not None
    assert text[slice(*matches.spans[0])] == "请把下面这段，文字翻译成英文"


def plain(items: list[list[str]], text: list[str]) -> tuple[int, float]:
    """(removing item or -1, largest share) the slow way, for items of at least eight words."""
    best: tuple[float, int, int] | None = None
    removing: tuple[float, int, int] | None = None
    for number, item in enumerate(items):
        runs = {
            (i, j): 8 for i in range(len(item) - 7) for j in range(len(text) - 7) if item[i : i + 8] == text[j : j + 8]
        }
        if not runs:
            continue
        covered = {i + k for i, _ in runs for k in range(8)}
        longest = 8
        for i, j in sorted(runs):
            runs[i, j] = runs.get((i - 1, j - 1), 7) + 1
            longest = max(longest, runs[i, j])
        key = (len(covered) / len(item), longest, -number)
        best = max(best, key) if best else key
        if key[0] > 0.5 or longest >= 13:
            removing = max(removing, key) if removing else key
    shown = removing or best
    return (-removing[2] if removing else -1), (shown[0] if shown else 0.0)


def test_the_plain_search_gives_the_same_answer_span_included(monkeypatch: pytest.MonkeyPatch):
    items = [words(0, 20), words(10, 60), "What is the capital of France?", "yes", "a b " * 9, words(12, 40)]
    texts = [
        *(f"x {words(first, first + size)} y" for first in range(0, 40, 7) for size in (8, 11, 13, 20)),
        *("Yes!", "what is the capital of france", "a b a b a b a b a b a", f"{words(0, 8)} z {words(20, 31)}", ""),
    ]
    fast = find(items, texts)
    monkeypatch.setattr(decontamination, "compiled", lambda: False)
    slow = find(items, texts)
    for name in ("dup_of", "score", "spans", "items"):
        assert getattr(slow, name).tolist() == getattr(fast, name).tolist()
    assert 10 < fast.num_duplicates < len(texts)


def test_an_index_that_was_used_before_answers_as_a_new_one():
    rng = random.Random(6)
    items = [" ".join(rng.choices("ab", k=rng.randrange(8, 30))) for _ in range(40)]
    texts = [" ".join(rng.choices("abc", k=rng.randrange(40))) for _ in range(300)]
    used = EvaluationIndex(items, ngram=8, long_ngram=13, num_threads=1)
    chunks = [used.find(texts[start : start + 7], max_coverage=0.5) for start in range(0, 300, 7)]
    whole = find(items, texts)
    for name in ("dup_of", "score", "spans", "items"):
        assert [value for chunk in chunks for value in getattr(chunk, name).tolist()] == getattr(whole, name).tolist()
    assert whole.num_duplicates > 0


def test_texts_are_read_once_chunk_by_chunk_and_come_with_their_matches():
    texts = [
        f"x {words(number % 7, number % 7 + 14)} y" if number % 1000 == 1 else f"row {number}" for number in range(9000)
    ]
    index = EvaluationIndex([words(0, 20)], ngram=8, long_ngram=13, num_threads=2)
    unread = iter(texts)
    parts = list(index.find_each(unread, max_coverage=0.5))
    assert next(unread, None) is None
    assert [text for _, chunk, _ in parts for text in chunk] == texts
    assert [start + int(row) for start, _, part in parts for row in np.flatnonzero(part.dup_of >= 0)] == list(
        range(1, 9000, 1000)
    )


LETTERS = st.sampled_from("ab")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(LETTERS, min_size=8, max_size=30), min_size=1, max_size=4),
    st.lists(st.lists(st.sampled_from("abc"), max_size=40), max_size=4),
)
def test_every_answer_is_that_of_the_plain_count(items: list[list[str]], texts: list[list[str]]):
    matches = find([" ".join(item) for item in items], [" ".join(text) for text in texts])
    expected = [plain(items, text) for text in texts]
    assert [(int(row), float(share)) for row, share in zip(matches.dup_of, matches.score, strict=True)] == expected


def test_planted_questions_are_found_among_real_rows(shared_data: Path):
    questions = [row["instruction"] for row in json.loads((shared_data / "alpaca/gsm8k_train.json").read_text())][:400]
    lines = (shared_data / "lamini/lamini_dataset.jsonl").read_text().splitlines()
    texts = [json.loads(line)["question"] for line in lines]
    clean = find(questions, texts, num_threads=2)
    assert clean.num_duplicates == 0
    for number in range(0, 400, 4):
        texts[number * 10] = f"Solve this. {questions[number]} Explain."
    matches = find(questions, texts, num_threads=2)
    for number in range(0, 400, 4):
        assert matches.dup_of[number * 10] == number
        assert matches.spans is not None
        shown = texts[number * 10][slice(*matches.spans[number * 10])]
        assert unicode_tokens(shown) == unicode_tokens(questions[number])
    assert matches.num_duplicates == 100
    assert SHORTEST == 4
