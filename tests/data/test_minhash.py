"""Near duplicates: clusters against planted truth, scores against sets made by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tunesmith.data import minhash
from tunesmith.data.matches import Matches
from tunesmith.data.minhash import find_near
from tunesmith.errors import DataError
from tunesmith.text.rouge import unicode_tokens

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def compiled_from_the_first_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minhash, "COMPILED_FROM", 0)


def near(texts: list[str], num_threads: int = 1) -> Matches:
    return near_of(texts, num_threads)


def near_of(texts: Iterable[str], num_threads: int = 1, folder: Path | None = None) -> Matches:
    return find_near(
        texts, threshold=0.7, ngram=5, num_bands=16, rows_per_band=8, num_threads=num_threads, rng_seed=1, folder=folder
    )


def jaccard(a: str, b: str) -> float:
    grams = [
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (unicode_tokens(a), unicode_tokens(b))
    ]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def planted(rng: random.Random, num_rows: int) -> tuple[list[str], list[int]]:
    """Rows of 60 to 90 words; every fourth repeats an earlier one with its last word changed."""
    texts: list[str] = []
    origins: list[int] = []
    for row in range(num_rows):
        if row % 4 == 3:
            source = rng.randrange(row)
            origins.append(origins[source])
            texts.append(" ".join([*texts[source].split()[:-1], f"changed{row}"]))
        else:
            origins.append(row)
            texts.append(" ".join(f"w{rng.randrange(5000)}" for _ in range(rng.randrange(60, 90))))
    return texts, origins


def test_planted_near_copies_are_found_and_nothing_else():
    texts, origins = planted(random.Random(1), 9000)
    matches = near(texts)
    assert matches.cluster.tolist() == origins
    rows = np.flatnonzero(matches.dup_of >= 0)
    assert len(rows) == 2250
    assert matches.estimate is not None
    for row in rows[:200]:
        assert matches.score[row] == jaccard(texts[row], texts[matches.dup_of[row]])
    assert np.abs(matches.estimate - matches.score)[rows].mean() < 0.03
    again = near(texts, num_threads=2)
    assert again.cluster.tolist() == origins
    assert again.score.tolist() == matches.score.tolist()


def test_short_texts_and_texts_without_a_word_are_compared_by_characters():
    texts = ["Say hello", "say hello!", "👍👍", "👍👍", "", "  ", "no", "Sing loudly", "!!", "Yes"]
    assert near(texts).dup_of.tolist() == [-1, 0, -1, 2, -1, 4, -1, -1, -1, -1]


def test_chinese_rows_are_compared_by_character():
    text = "请把下面这段关于北京历史和文化的文字翻译成英文并且解释其中每一个成语的来源和意义谢谢"
    matches = near([text, text.removesuffix("谢谢"), "今天的天气怎么样我想知道明天会不会下雨", text])
    assert matches.dup_of.tolist() == [-1, 0, -1, 0]
    assert matches.score[1] == jaccard(text, text.removesuffix("谢谢"))
    assert matches.score[3] == 1.0


def test_a_chain_is_one_cluster_and_its_scores_are_against_the_row_that_stays():
    words = [f"w{number}" for number in range(100)]
    texts = [" ".join([*words[shift:], *(f"v{number}" for number in range(shift))]) for shift in (0, 5, 10, 15, 20)]
    matches = near(texts)
    assert matches.cluster.tolist() == [0, 0, 0, 0, 0]
    assert matches.score[4] == jaccard(texts[0], texts[4]) < 0.7


def test_texts_are_read_once_and_few_of_them_at_a_time():
    texts, origins = planted(random.Random(4), 13_000)
    reads: list[int] = []
    unread = iter(texts)

    def generated() -> Iterator[str]:
        for number, text in enumerate(unread):
            reads.append(number)
            yield text

    matches = near_of(generated(), num_threads=2)
    assert matches.cluster.tolist() == origins
    assert reads == list(range(13_000))


def test_pairs_that_are_forgotten_as_refused_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(8)
    words = [f"w{number}" for number in range(40)]
    texts = []  # a template of 30 words with 6 of its own: many candidates, few of them alike
    for _ in range(300):
        own = rng.choices(words, k=6)
        place = rng.randrange(30)
        texts.append(
            " ".join([*(f"t{number}" for number in range(place)), *own, *(f"t{number}" for number in range(place, 30))])
        )
    remembered = near(texts)
    monkeypatch.setattr(minhash, "_REFUSED_AT_MOST", 3)
    forgotten = near(texts)
    assert forgotten.dup_of.tolist() == remembered.dup_of.tolist()
    assert 0 < remembered.num_duplicates < 299


def test_a_full_disk_is_said_with_its_folder(tmp_path: Path):
    with pytest.raises(DataError, match="no temporary file could be written") as caught:
        near_of(["a", "b"], folder=tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")


def test_no_rows_and_one_row_are_no_special_case():
    assert len(near([])) == 0
    assert near(["one"]).dup_of.tolist() == [-1]


def test_the_plain_loops_give_the_same_answer_to_the_last_bit(monkeypatch: pytest.MonkeyPatch):
    texts, _ = planted(random.Random(2), 120)
    texts += [
        "Say hello",
        "say hello!",
        "👍👍",
        "👍 👍",
        "",
        " ",
        "我的自行车坏了",
        "我的自行车坏了！",
        "no",
        "Ünï ＡＢＣ x",
    ]
    fast = near(texts)
    monkeypatch.setattr(minhash, "compiled", lambda: False)
    slow = near(texts)
    assert fast.estimate is not None and slow.estimate is not None
    assert slow.dup_of.tolist() == fast.dup_of.tolist()
    assert slow.score.tolist() == fast.score.tolist()
    assert slow.estimate.tolist() == fast.estimate.tolist()
    assert fast.num_duplicates == 30 + 4
