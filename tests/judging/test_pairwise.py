"""Comparisons are asked in both orders, and one verdict comes of both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tunesmith.judging.pairwise import Pair, Verdict, compare
from tunesmith.types import Completion, Message, TeacherRequest

PAIR = Pair([Message(role="user", content="Which is longer?")], "long answer", "short")


def ask(pick: str) -> list[TeacherRequest]:
    """The requests of one comparison."""
    asked: list[TeacherRequest] = []

    def ask_all(requests: Sequence[TeacherRequest]) -> list[Completion]:
        asked.extend(requests)
        return [Completion(text=pick) for _ in requests]

    compare([PAIR], ask_all, criteria="Length counts.", language="en")
    return asked


def verdict(answers: list[Completion]):
    return compare([PAIR], lambda requests: answers, criteria="x", language="en")[0]


def test_each_pair_is_asked_in_both_orders() -> None:
    first, second = (request.messages[0].content for request in ask("1"))
    assert first.index("long answer") < first.index("short")
    assert second.index("short") < second.index("long answer")
    assert "Length counts." in first and "Which is longer?" in first


def test_orders_that_agree_give_a_preference_from_their_probabilities() -> None:
    sure = Completion(text="1", top_logprobs=[{"1": -0.1054, "2": -2.3026}])  # 0.9 and 0.1
    found = verdict([sure, Completion(text="2")])
    assert found.agreed and found.preference == pytest.approx((0.9 + 1) / 2, abs=1e-3)


def test_a_judge_that_names_a_place_has_not_agreed_with_itself() -> None:
    assert verdict([Completion(text="1"), Completion(text="1")]) == Verdict(0.5, agreed=False)


def test_an_order_without_a_verdict_leaves_the_pair_open() -> None:
    failed = Completion(text="", finish_reason="error", error="503")
    assert verdict([Completion(text="1"), failed]).preference is None
    assert verdict([Completion(text="both are fine"), Completion(text="2")]).preference is None


def test_the_question_is_there_in_chinese() -> None:
    asked: list[TeacherRequest] = []
    compare(
        [PAIR],
        lambda requests: [asked.append(each) or Completion(text="1") for each in requests],
        criteria="简洁",
        language="zh",
    )
    assert "简洁" in asked[0].messages[0].content and "更好的回答" in asked[0].messages[0].content
