"""Training rows that hold a question of an evaluation: runs of words, and of characters where a script has no spaces."""

from __future__ import annotations

import pytest

from tunesmith.data.filters.contamination import LONG_UNSPACED, Contamination, Question
from tunesmith.types import Conversation, Message

CHINESE = "请把下面这封邮件分类为垃圾邮件或非垃圾邮件并且用不超过两句话说明你这样判断的具体理由然后给收件人提出建议"
ENGLISH = (
    "please read the following letter from a customer of ours with care and then decide which of the seven teams "
    "should answer it before the end of the day, with one short sentence that says why"
)


def verdicts_of(texts: list[str], *questions: str) -> list[str | None]:
    """The detail of each verdict."""
    rows = [
        Conversation(messages=[Message(role="user", content=text), Message(role="assistant", content="?")])
        for text in texts
    ]
    asked = [Question(question, f"exam:{number}", False) for number, question in enumerate(questions, 1)]
    found = Contamination(asked, max_coverage=0.5, num_threads=1).judge_all(rows)
    return [verdict[1] if isinstance(verdict, tuple) else None for verdict in found]


def test_thirteen_words_in_a_row_are_a_leak_and_twelve_are_none() -> None:
    words = ENGLISH.split()
    held, free = verdicts_of([f"so {' '.join(words[3:16])} no", f"so {' '.join(words[3:15])} no"], ENGLISH)
    assert held == f"holds {13 / len(words):.0%} of the question exam:1: {' '.join(words[3:16])!r}"
    assert free is None


@pytest.mark.parametrize(("length", "is_leak"), [(13, False), (LONG_UNSPACED - 1, False), (LONG_UNSPACED, True)])
def test_characters_of_chinese_are_parts_of_words(length: int, is_leak: bool) -> None:
    assert length / len(CHINESE) < 0.5  # so the share decides nothing
    (found,) = verdicts_of([f"好：{CHINESE[4 : 4 + length]}；"], CHINESE)
    assert (found is not None) == is_leak


def test_more_than_half_of_a_chinese_question_is_a_leak_however_short() -> None:
    question = "解释以下职业的社会刻板印象"
    assert verdicts_of([f"好：{question[:12]}。"], question) == [f"holds 92% of the question exam:1: '{question[:12]}'"]


def test_words_and_characters_in_one_run_are_weighed() -> None:
    mixed = "请用 Python 和 numpy 写 一 段 code that reads a large csv file row by row 并打印出每一列的平均值和方差以及中位数还有最大值和最小值"
    few, many = mixed[: mixed.index("csv")], mixed[: mixed.index(" by row")]
    assert verdicts_of([few, many], mixed) == [None, f"holds 35% of the question exam:1: '{many}'"]


def test_a_question_behind_the_nearest_one_still_counts() -> None:
    other = "甲乙丙丁戊己庚辛壬癸" + CHINESE[24:46] + "".join(map(chr, range(0x5000, 0x5100)))
    row = f"{CHINESE[:19]}。{CHINESE[24:46]}"
    (found,) = verdicts_of([row], CHINESE[:19] + "".join(map(chr, range(0x6000, 0x6014))), other)
    assert found is not None and found.startswith("holds 8% of the question exam:2")
