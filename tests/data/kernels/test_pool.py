"""The compiled pool answers as the plain loop does, to the last bit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import novelty
from tunesmith.data.novelty import RougeNoveltyIndex
from tunesmith.text.rouge import alphabet_of, rouge_l, rouge_score_tokens, unicode_tokens

pytest.importorskip("numba")

from tunesmith.data.kernels.pool import CompiledPool

SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "狗"]), max_size=14).map(" ".join)
THRESHOLDS = st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0])


def pool_of(texts: list[str]) -> CompiledPool:
    alphabet = alphabet_of(unicode_tokens)
    assert alphabet is not None
    pool = CompiledPool(alphabet)
    pool.add_all(texts)
    return pool


@settings(max_examples=300, deadline=None)
@given(st.lists(SENTENCES, min_size=1, max_size=12), SENTENCES, THRESHOLDS)
def test_nearest_and_search_give_the_maximum_and_its_lowest_row(pool: list[str], query: str, threshold: float):
    scores = [rouge_l(text, query) for text in pool]
    best = max(scores)
    index = pool_of(pool)
    assert index.nearest(query) == (best, scores.index(best))
    found, score, _ = index.search([query], threshold, add=False)
    assert (found[0], score[0]) == ((scores.index(best), best) if best > threshold else (-1, 0.0))


@settings(max_examples=200, deadline=None)
@given(st.lists(SENTENCES, max_size=20), THRESHOLDS)
def test_the_greedy_loop_keeps_and_names_what_the_plain_loop_does(texts: list[str], threshold: float):
    plain = RougeNoveltyIndex()
    expected = plain.add_novel(texts, threshold)
    found, scores, own = pool_of([]).search(texts, threshold, add=True)
    assert found.tolist() == expected.dup_of.tolist()
    assert scores.tolist() == expected.score.tolist()
    assert own[found < 0].tolist() == expected.cluster[expected.dup_of < 0].tolist()


def test_texts_longer_than_a_machine_word_are_compared_exactly():
    rng = random.Random(3)
    words = [f"w{number}" for number in range(60)]
    base = [" ".join(rng.choices(words, k=rng.choice([63, 64, 65, 128, 200]))) for _ in range(30)]
    changed = []
    for text in base:
        parts = text.split()
        for _ in range(len(parts) // 6):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        changed.append(" ".join(parts))
    index = pool_of(base)
    for query in changed:
        scores = [rouge_l(text, query) for text in base]
        assert index.nearest(query) == (max(scores), scores.index(max(scores)))
        found, score, _ = index.search([query], 0.6, add=False)
        assert (found[0], score[0]) == (scores.index(max(scores)), max(scores))


def test_texts_of_more_words_than_sixteen_bits_count_are_compared_exactly():
    words = [f"w{number % 5}" for number in range(66_000)]
    near = [*words[:65_990], *(["other"] * 10)]
    index = pool_of([" ".join(words[:1000]), " ".join(words)])
    found, score, _ = index.search([" ".join(near)], 0.7, add=False)
    assert found[0] == 1
    assert score[0] == rouge_l(" ".join(words), " ".join(near)) == 65_990 / 66_000


def test_a_pool_that_outgrows_its_room_and_its_word_order_still_decides_the_same(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(11)
    words = [f"w{int(rng.paretovariate(0.3)) % 4000}" for _ in range(4000)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(1, 12))) for _ in range(3000)]
    plain = RougeNoveltyIndex().add_novel(texts, 0.5)
    monkeypatch.setattr(novelty, "COMPILED_FROM", 700)
    mixed = RougeNoveltyIndex()
    parts = [mixed.add_novel(texts[start : start + 600], 0.5) for start in range(0, 3000, 600)]
    assert [row for part in parts for row in part.dup_of.tolist()] == plain.dup_of.tolist()
    assert [score for part in parts for score in part.score.tolist()] == plain.score.tolist()
    assert len(mixed) == len(plain.kept) > 1024


def test_a_lower_threshold_after_a_higher_one_misses_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(novelty, "COMPILED_FROM", 1)
    index = RougeNoveltyIndex()
    for text in ["a b c d e f g h i j", "k l m n", "!!!"]:
        index.add(text)
    query = "a b c d x y z u v w"
    assert index.nearest_above(query, 0.7) is None
    assert index.nearest_above(query, 0.35) == (pytest.approx(0.4), 0)
    assert index.nearest_above(query, 0.0) == (pytest.approx(0.4), 0)
    assert index.nearest_above("new words alone", 0.0) is None
    assert index.nearest("new words alone") == (0.0, 0)
    assert index.nearest("?") == (0.0, 0)
    assert index.add("k l m o") == 3
    assert index.nearest("k l m o") == (1.0, 3)


def test_the_seed_tasks_lose_the_two_known_rows(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(novelty, "COMPILED_FROM", 1)
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text().splitlines()
    texts = [json.loads(line)["instruction"] for line in lines]
    for tokenize in (rouge_score_tokens, unicode_tokens):
        matches = novelty.find_alike(texts, max_similarity=0.7, tokenize=tokenize)
        pairs = {(int(matches.dup_of[row]), row): round(matches.score[row], 4) for row in (74, 113)}
        assert pairs == {(47, 74): 0.8235, (77, 113): 0.75}
        assert matches.num_duplicates == 2
