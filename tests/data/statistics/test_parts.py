"""Lengths, names, repetitions, clusters, exclusions, texts: each part of a survey by itself."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.data.statistics.changes import word_changes
from tunesmith.data.statistics.clusters import find_clusters
from tunesmith.data.statistics.counts import Count, Tally, language_namer, model_of, script_of, source_of
from tunesmith.data.statistics.duplicates import RepeatCounter, near_duplicates
from tunesmith.data.statistics.exclusions import Exclusions
from tunesmith.data.statistics.lengths import Lengths
from tunesmith.data.statistics.texts import one_line, shortened, visible
from tunesmith.types import Conversation, Excluded, Message


def row(prompt: str = "q", reply: str = "a", **fields) -> Conversation:
    return Conversation(
        messages=[Message(role="user", content=prompt), Message(role="assistant", content=reply)], **fields
    )


def test_quantiles_are_lengths_that_occur_and_the_bins_hold_every_row() -> None:
    lengths = Lengths()
    lengths.add(range(1, 100))
    lengths.add([5000])
    found = lengths.summary()
    assert found is not None
    assert (found.num, found.min, found.median, found.p90, found.p99, found.max) == (100, 1, 50, 90, 99, 5000)
    assert found.mean == pytest.approx((99 * 100 / 2 + 5000) / 100)
    assert sum(each.num for each in found.bins) == 100 and len(found.bins) <= 20
    assert (
        found.bins[-1].num > 1 and found.bins[-1].high <= 105
    )  # the long one is in the last bin and stretches nothing


def test_a_quantile_is_a_length_that_so_many_rows_do_not_exceed() -> None:
    lengths = Lengths()
    lengths.add([2, 2, 2, 16])
    found = lengths.summary()
    assert found is not None and (found.median, found.p90, found.p99) == (2, 16, 16)


def test_equal_lengths_and_no_lengths_have_a_summary_and_none() -> None:
    lengths = Lengths()
    assert lengths.summary() is None
    lengths.add([7, 7, 7])
    found = lengths.summary()
    assert found is not None and [(each.low, each.high, each.num) for each in found.bins] == [(7, 8, 3)]


def test_a_tally_folds_what_is_rare_and_loses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.data.statistics.counts._MOST_NAMES", 3)
    tally = Tally()
    for name in ["a", "a", "b", "c", "d", "e", "a", "d"]:
        tally.add(name)
    assert tally.most(2) == [Count("a", 3), Count("b", 1), Count("(more than 1 others)", 4)]


def test_source_and_model_come_without_the_line() -> None:
    assert source_of(row(source="seeds.jsonl:41")) == "seeds.jsonl" == source_of(row(source="seeds.jsonl#41"))
    assert source_of(row()) == "(not stated)"
    generated = row(source="self_instruct:openai:gpt-x@https://api.example/v1")
    assert model_of(generated) == "openai:gpt-x@https://api.example/v1"
    assert model_of(row(metadata={"model": "Model: GPT-4"}, source="a.html")) == "Model: GPT-4"
    assert model_of(row(source="a.jsonl:3")) == "(not stated)"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello 世", "Latin script"),
        ("这是 API 的说明", "zh"),
        ("これは漢字です", "ja"),
        ("Привет", "Cyrillic script"),
        ("12 + 3", "(no letters)"),
    ],
)
def test_scripts_are_told_apart_without_a_model(text: str, script: str) -> None:
    assert script_of(text) == script


def test_a_language_that_is_not_sure_is_not_named() -> None:
    name, missing = language_namer()
    if missing is not None:
        pytest.skip("the language model is not installed: tunesmith[language]")
    texts = ["You too!", "How long should black tea steep?", "请给我讲一个笑话", "12 + 3"]
    assert [name(text) for text in texts] == ["(not sure)", "en", "zh", "(no letters)"]


def test_equal_texts_are_counted_over_chunks_without_case_and_spaces() -> None:
    counter = RepeatCounter(num_threads=1)
    counter.add(["One two", "three", "one  TWO"])
    counter.add(["four", "ONE TWO", "three"])
    found = counter.found()
    assert (found.num_rows, found.num_repeats) == (6, 3)
    assert [(each.num, each.text.casefold()) for each in found.most] == [(3, "one  two"), (2, "three")]


def test_near_copies_leave_equal_rows_aside() -> None:
    words = [f"word{n}" for n in range(60)]
    long = " ".join(words)
    texts = [long, long.upper(), " ".join([*words[:59], "other"]), "nothing of this kind at all"]
    found = near_duplicates(texts, num_threads=1)
    assert (found.num_rows, found.num_near) == (4, 1)
    assert found.pairs[0].jaccard == pytest.approx(57 / 59)


def test_a_pair_is_shown_from_shortly_before_its_difference_and_the_most_alike_of_a_chain() -> None:
    words = [f"word{n}" for n in range(60)]
    texts = [" ".join([*words[: 60 - cut], *(f"x{n}" for n in range(cut))]) for cut in (0, 9, 3)]
    found = near_duplicates(texts, num_threads=1)
    assert found.num_near == 2 and len(found.pairs) == 1
    assert found.pairs[0].first.startswith("…") and found.pairs[0].first.endswith("word58 word59")
    assert found.pairs[0].second.endswith("word56 x0 x1 x2") and len(found.pairs[0].first) < 80


def test_clusters_are_named_by_the_words_that_tell_them_apart() -> None:
    texts = [f"Write a poem about roses number {n}" for n in range(20)] + [
        f"Solve the equation {n} x = 4" for n in range(10)
    ]

    def embed(given) -> np.ndarray:
        return np.array([[1, 0] if "poem" in text else [0, 1] for text in given], np.float32)

    found = find_clusters(texts, embed=embed, num_clusters=2, rng_seed=3)
    assert [(cluster.num, "poem" in cluster.words, "equation" in cluster.words) for cluster in found] == [
        (20, True, False),
        (10, False, True),
    ]
    assert found[0].share == pytest.approx(2 / 3) and found[0].example.startswith("Write a poem")


def test_clusters_of_no_rows_and_of_rows_without_words_are_none() -> None:
    assert find_clusters([], embed=lambda t: np.zeros((len(t), 2)), num_clusters=3, rng_seed=1) == []
    assert find_clusters(["?"], embed=lambda t: np.zeros((len(t), 2), np.float32), num_clusters=3, rng_seed=1) == []


def test_exclusions_keep_the_first_row_of_each_reason() -> None:
    exclusions = Exclusions()
    for number in range(3):
        exclusions.add(
            Excluded(reason="exact", detail=f"d{number}", where=f"a:{number}", conversation=row(f"p{number}"))
        )
    exclusions.add(Excluded(reason="bad_row", raw={"x": "ü"}))
    taken = exclusions.taken()
    assert [(each.reason, each.num, each.where, each.prompt) for each in taken] == [
        ("exact", 3, "a:0", "p0"),
        ("bad_row", 1, "", '{"x":"ü"}'),
    ]


def test_control_and_direction_characters_are_written_out() -> None:
    hostile = "a\x1b[31mred\x00\u202eevil\u2066\ud800\r\nnext\tline\u200d"
    assert visible(hostile) == "a‹U+001B›[31mred‹U+0000›‹U+202E›evil‹U+2066›‹U+D800›\nnext\tline\u200d"
    assert one_line("a\n\n b\u0007", 20) == "a b‹U+0007›"
    assert one_line("x" * 30, 10) == "x" * 9 + "…"
    assert shortened("abcdef", 4) == ("abcd", 2)


def test_changed_words_are_found_and_put_together_again() -> None:
    pieces = word_changes("The cat sat down.", "The dog sat, down.")
    assert [(kind, text) for kind, text in pieces if kind != "same"] == [
        ("removed", "cat"),
        ("added", "dog"),
        ("added", ","),
    ]
    assert "".join(text for kind, text in pieces if kind != "added") == "The cat sat down."
    assert [kind for kind, _ in word_changes("我喜欢猫", "我喜欢狗")] == ["same", "removed", "added"]


def test_of_long_texts_the_beginnings_are_compared_and_the_rest_is_counted() -> None:
    pieces = word_changes("a " * 2000, "a " * 2000 + "b")
    assert pieces[-1].kind == "left_out" and pieces[-1].text == f"{2 * 2500 + 1:,} characters"
