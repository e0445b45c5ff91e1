"""ROUGE-L: equal to the rouge_score package where that package can read, and right where it cannot."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenize import tokenize as reference_tokenize

from tunesmith.text.rouge import (
    MAX_CHARACTERS,
    count_unspaced,
    count_words,
    f_measure,
    lcs_length,
    nth_character,
    rouge_l,
    rouge_score_tokens,
    unicode_tokens,
)

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def slow_lcs(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for token in a:
        previous = 0
        for j, other in enumerate(b, start=1):
            previous, row[j] = row[j], previous + 1 if token == other else max(row[j], row[j - 1])
    return row[-1]


WORDS = st.lists(
    st.sampled_from(["a", "b", "c", "d", "the", "dog", "狗", "猫", "été", "Ünï", "42", "don't"]), max_size=14
)


@given(WORDS, WORDS)
def test_the_fast_lcs_equals_the_table_of_the_textbook(a: list[str], b: list[str]):
    assert lcs_length(a, b) == slow_lcs(a, b)


@given(st.text(alphabet="ab cd.-'", max_size=40), st.text(alphabet="ab cd.-'", max_size=40))
def test_on_ascii_text_both_tokenizers_give_the_floats_of_rouge_score(a: str, b: str):
    expected = SCORER.score(a, b)["rougeL"].fmeasure
    assert rouge_l(a, b) == expected
    assert rouge_l(a, b, rouge_score_tokens) == expected
    assert rouge_l(b, a) == expected


@given(st.text(max_size=40))
def test_the_compatible_tokenizer_is_that_of_rouge_score(text: str):
    assert rouge_score_tokens(text) == reference_tokenize(text, None)


def test_on_real_seed_tasks_every_float_is_that_of_rouge_score(shared_data: Path):
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text().splitlines()
    texts = [json.loads(line)["instruction"] for line in lines]
    pairs = [*pairwise(texts), (texts[47], texts[74]), (texts[77], texts[113])]
    ours = [rouge_l(a, b, rouge_score_tokens) for a, b in pairs]
    assert ours == [SCORER.score(a, b)["rougeL"].fmeasure for a, b in pairs]
    assert [round(value, 4) for value in ours[-2:]] == [0.8235, 0.75]


def test_a_value_on_the_threshold_falls_where_rouge_score_lets_it_fall():
    rng = random.Random(5)
    sides: set[bool] = set()
    ties = [(7 * (m + n) // 20, m, n) for n in range(1, 60) for m in range(1, 60) if (m + n) % 20 == 0]
    for lcs, m, n in ties:
        if lcs > min(m, n):
            continue
        # m words and n words that share their first lcs words.
        a = " ".join(f"w{i}" for i in range(m))
        b = " ".join(f"w{i}" if i < lcs else f"v{i}" for i in range(n))
        sides.add(f_measure(lcs, m, n) > 0.7)
        if rng.random() < 0.2:
            assert rouge_l(a, b) == SCORER.score(a, b)["rougeL"].fmeasure
    assert sides == {False, True}  # rouge_score's rounding puts some exact ties above 0.7


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Ist das Fahrrad größer?", ["ist", "das", "fahrrad", "größer"]),
        ("我的自行车坏了！", list("我的自行车坏了")),
        ("iPhone很好用", ["iphone", "很", "好", "用"]),
        ("ひらがなとカタカナ", list("ひらがなとカタカナ")),
        ("자전거가 고장났어요", ["자전거가", "고장났어요"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("snake_case don't", ["snake", "case", "don", "t"]),
        ("cafe\u0301 ＡＢＣ", ["café", "abc"]),
        ("👍 …", []),
        ("", []),
    ],
)
def test_words_are_found_in_every_script(text: str, tokens: list[str]):
    assert unicode_tokens(text) == tokens


def test_equal_chinese_sentences_are_equal_and_different_ones_are_not():
    assert rouge_l("我的自行车坏了", "我的自行车坏了") == 1.0
    assert rouge_l("我的自行车坏了", "我的自行车坏了", rouge_score_tokens) == 0.0
    assert rouge_l("我的自行车坏了", "你的自行车坏了") == pytest.approx(6 / 7)
    assert rouge_l("天气", "自行车") == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't panic - now", 4),
        ("你好，world", 3),
        ("👍", 1),
        ("", 0),
        ("  \n", 0),
        ("café olé!", 2),
        ("价格：３０元。", 4),
        ("？！", 1),
    ],
)
def test_words_are_counted_as_a_person_counts_them(text: str, words: int):
    assert count_words(text) == words


def test_characters_of_scripts_without_spaces_are_told_from_words():
    assert count_unspaced(unicode_tokens("用 Python 写两行 code 한국어 ひら")) == 6
    assert count_unspaced(unicode_tokens("plain words, café")) == 0


def test_every_word_number_has_a_character_of_its_own():
    edge = [nth_character(n) for n in (0, 0xD7FF, 0xD800, MAX_CHARACTERS - 1)]
    assert edge == ["\x00", "\ud7ff", "\ue000", "\U0010ffff"]
    for character in edge:
        character.encode()
