"""The novelty index decides exactly as the plain loop over the pool does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.errors import DataError
from tunesmith.text import rouge
from tunesmith.text.rouge import rouge_l, rouge_score_tokens, unicode_tokens
from tunesmith.types import Conversation, Message


def instructions(shared_data: Path, name: str) -> list[str]:
    return [json.loads(line)["instruction"] for line in (shared_data / name).read_text().splitlines()]


def keep_novel(texts: list[str], index: RougeNoveltyIndex, max_similarity: float) -> list[int]:
    kept = []
    for number, text in enumerate(texts):
        score, _ = index.nearest(text)
        if not score > max_similarity:
            index.add(text)
            kept.append(number)
    return kept


def keep_novel_naively(texts: list[str], max_similarity: float) -> list[int]:
    tokens = [rouge_score_tokens(text) for text in texts]
    kept: list[int] = []
    for number in range(len(texts)):
        scores = [rouge_scorer._score_lcs(tokens[number], tokens[k]).fmeasure for k in kept]
        if not scores or max(scores) <= max_similarity:
            kept.append(number)
    return kept


def test_the_seed_tasks_keep_173_and_the_two_known_pairs_are_found(shared_data: Path):
    texts = instructions(shared_data, "alpaca/seed_tasks.jsonl")
    pairs = {
        (i, j): round(rouge_l(texts[i], texts[j], rouge_score_tokens), 4)
        for j in range(len(texts))
        for i in range(j)
        if rouge_l(texts[i], texts[j], rouge_score_tokens) > 0.7
    }
    assert pairs == {(47, 74): 0.8235, (77, 113): 0.75}
    kept = keep_novel(texts, RougeNoveltyIndex(rouge_score_tokens), 0.7)
    assert sorted(set(range(175)) - set(kept)) == [74, 113]


@pytest.mark.parametrize("max_similarity", [0.7, 0.5, 0.3])
def test_on_real_rows_every_decision_is_that_of_the_naive_loop(shared_data: Path, max_similarity: float):
    lines = (shared_data / "lamini/lamini_dataset.jsonl").read_text().splitlines()
    texts = [json.loads(line)["question"] for line in lines[:300]]
    expected = keep_novel_naively(texts, max_similarity)
    assert len(expected) < len(texts)
    assert keep_novel(texts, RougeNoveltyIndex(rouge_score_tokens), max_similarity) == expected


def test_chinese_seeds_are_told_apart_by_the_unicode_tokenizer_alone(shared_data: Path):
    texts = instructions(shared_data, "belle/zh_seed_tasks.json")
    near = RougeNoveltyIndex()
    far = RougeNoveltyIndex(rouge_score_tokens)
    for text in texts:
        near.add(text)
        far.add(text)
    changed = texts[0].replace("请", "")
    assert near.nearest(changed)[1] == 0
    assert near.nearest(changed)[0] > 0.9
    assert far.nearest(changed)[0] == 0.0


TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "狗"]), max_size=12).map(" ".join), max_size=12)


@settings(max_examples=300)
@given(
    TEXTS,
    st.lists(st.sampled_from(["a", "b", "c", "d", "z"]), max_size=12).map(" ".join),
    st.sampled_from([0.0, 0.5, 0.7]),
)
def test_nearest_is_the_maximum_over_the_pool_to_the_last_bit(pool: list[str], query: str, threshold: float):
    index = RougeNoveltyIndex(unicode_tokens)
    assert [index.add(text) for text in pool] == list(range(len(pool)))
    scores = [rouge_l(text, query) for text in pool]
    best, found = index.nearest(query)
    assert best == max(scores, default=0.0)
    assert found == -1 if not pool else scores[found] == best
    above = index.nearest_above(query, threshold)
    assert (above is not None) == (max(scores, default=0.0) > threshold)
    assert above is None or above == (max(scores), scores.index(scores[above[1]])) or scores[above[1]] == max(scores)


def test_exactly_seven_tenths_stays_and_the_next_higher_goes():
    index = RougeNoveltyIndex()
    index.add("a b c d e f g h i j")
    assert index.nearest("a b c d e f g x y z") == (0.7, 0)
    assert index.nearest_above("a b c d e f g x y z", 0.7) is None
    assert index.nearest_above("a b c d e f g h y z", 0.7) == (pytest.approx(0.8), 0)


def test_texts_without_a_word_are_near_nothing():
    index = RougeNoveltyIndex()
    assert index.nearest("a") == (0.0, -1)
    index.add("!!!")
    assert index.nearest("!!!") == (0.0, 0)
    assert len(index) == 1


def test_too_many_different_words_are_an_error_and_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.data.novelty.MAX_CHARACTERS", 4)
    index = RougeNoveltyIndex()
    index.add("a b c")
    with pytest.raises(DataError, match="more than 3 different words"):
        index.add("d")
    assert rouge.MAX_CHARACTERS == 1_112_064


def test_the_text_compared_is_what_the_user_says():
    turns = [("system", "s"), ("user", "hello"), ("assistant", "hi"), ("user", "thanks"), ("assistant", "ok")]
    conversation = Conversation(messages=[Message(role=role, content=text) for role, text in turns])  # type: ignore[arg-type]
    assert novelty_text(conversation) == "hello\nthanks"
