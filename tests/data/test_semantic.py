"""Semantic duplicates: who stays is defined, and the order is SemDeDup's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tunesmith.data import semantic
from tunesmith.data.matches import Matches
from tunesmith.data.semantic import Keep, find_semantic, find_semantic_vectors, kmeans, wordllama_embedder


def on_circle(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def thin(vectors: np.ndarray, keep: Keep, num_clusters: int | None = 1) -> Matches:
    return find_semantic_vectors(vectors, threshold=0.98, keep=keep, num_clusters=num_clusters, rng_seed=1)


def test_each_way_to_choose_keeps_another_row():
    vectors = on_circle(10, 0, 40, 41, 42)  # the centre lies at 26.6 degrees; cos 11 degrees is 0.9816
    assert thin(vectors, "first").dup_of.tolist() == [-1, 0, -1, 2, 2]
    assert thin(vectors, "hard").dup_of.tolist() == [1, -1, 4, 4, -1]
    assert thin(vectors, "easy").dup_of.tolist() == [-1, 0, -1, 2, 2]
    assert thin(vectors, "first").score[1] == pytest.approx(np.cos(np.radians(10)))


def test_a_removed_row_removes_no_other():
    matches = thin(on_circle(0, 10, 20), "first")  # 20 is near 10 alone, and 10 is gone
    assert matches.dup_of.tolist() == [-1, 0, -1]


def test_equal_vectors_in_many_parts_are_found_and_blocks_change_nothing():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3000, 16)).astype(np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    matches = thin(np.concatenate([base, base]), "first", num_clusters=8)
    assert matches.dup_of[:3000].max() == -1
    assert matches.dup_of[3000:].tolist() == list(range(3000))


def test_kmeans_finds_well_parted_groups():
    rng = np.random.default_rng(0)
    vectors = on_circle(*(centre + rng.normal(scale=2) for centre in (0, 120, 240) for _ in range(50)))
    centres = kmeans(vectors, 3, rng_seed=2)
    assert sorted(np.round(np.degrees(np.arctan2(centres[:, 1], centres[:, 0])) / 10).tolist()) == [-12, 0, 12]


def test_vectors_of_zeros_and_no_rows_match_nothing():
    assert thin(np.zeros((3, 4), np.float32), "hard").num_duplicates == 0
    assert len(find_semantic([], embed=lambda texts: np.zeros((0, 4), np.float32), threshold=0.9, keep="hard", num_clusters=None, rng_seed=1)) == 0  # fmt: skip


def test_any_function_from_texts_to_vectors_will_do():
    def embed(texts: Sequence[str]) -> np.ndarray:
        return on_circle(*(float(text) for text in texts))

    matches = find_semantic(["0", "90", "1"], embed=embed, threshold=0.98, keep="first", num_clusters=None, rng_seed=1)
    assert matches.dup_of.tolist() == [-1, -1, 0]


def test_the_vectors_of_the_wheel_bring_a_paraphrase_nearer_than_a_stranger():
    pytest.importorskip("wordllama")
    vectors = wordllama_embedder()(["How do I repair my bicycle?", "How can I fix my bike?", "Name a French cheese."])
    assert vectors.shape == (3, 256)
    cosines = vectors @ vectors.T
    assert np.diag(cosines) == pytest.approx(1, abs=1e-5)
    assert cosines[0, 1] > 0.5 > cosines[0, 2]


def test_the_vectors_are_those_of_the_wheels_own_embedding(monkeypatch: pytest.MonkeyPatch):
    wordllama = pytest.importorskip("wordllama")
    texts = ["How do I repair my bicycle?", "", "你好，世界", "one", "many words " * 40]
    folder = Path(wordllama.__file__).parent
    own = wordllama.WordLlama.load(cache_dir=folder, disable_download=True).embed(texts, norm=False)
    length = np.linalg.norm(own, axis=1, keepdims=True)
    plain = wordllama_embedder()(texts)
    assert plain == pytest.approx(own / np.where(length > 0, length, 1), abs=1e-6)
    pytest.importorskip("numba")
    monkeypatch.setattr(semantic, "_COMPILED_FROM", 0)
    assert wordllama_embedder()(texts).tolist() == plain.tolist()
