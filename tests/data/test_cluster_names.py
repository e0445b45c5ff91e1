"""The words that tell groups of texts apart."""

from __future__ import annotations

from tunesmith.data.cluster_names import name_groups


def test_words_that_other_groups_have_too_come_last() -> None:
    groups = [["Bake fresh bread slowly in the oven"] * 6, ["Ride your bicycle slowly to the lake"] * 4]
    assert name_groups(groups, 3) == [["bake", "fresh", "bread"], ["ride", "bicycle", "lake"]]
    assert name_groups(groups, 9)[1] == ["ride", "bicycle", "lake", "slowly"]


def test_a_word_of_one_long_row_does_not_name_a_group() -> None:
    groups = [["apple pie"] * 59 + ["apple " + "zebra " * 50], ["stone wall"] * 5]
    assert name_groups(groups, 5) == [["apple", "pie"], ["stone", "wall"]]


def test_forms_of_a_word_name_a_group_once() -> None:
    assert name_groups([["a poem of poems", "poem, rhyme"], ["sums"]], 5)[0] == ["poem", "rhyme"]


def test_chinese_groups_are_named_by_pairs_of_characters_that_do_not_overlap() -> None:
    names = name_groups([["机器学习模型", "机器学习算法"], ["天气很好", "天气不错"], ["写一首关于春天的诗"]], 3)
    assert names[0] == ["机器", "学习", "模型"] and "天气" in names[1] and names[2] == ["首关", "春天"]
    assert all(len(set("".join(words))) == 2 * len(words) for words in names)


def test_groups_without_words_have_no_names() -> None:
    assert name_groups([["42", "?"], []], 3) == [[], []] and name_groups([], 3) == []
