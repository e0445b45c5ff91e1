"""Pairs that come again, and prompts that are not drawn: every row ends somewhere, with its reason."""

from __future__ import annotations

from tunesmith.recipe.align import Prefer
from tunesmith.stages.answers import without_repeats
from tunesmith.stages.prefer import _drawn, _Pairs
from tunesmith.types import Conversation, Message, Preference


def pair(chosen: str, rejected: str, line: int, split: str | None = None, question: str = "which?") -> Preference:
    return Preference.model_validate(
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": chosen,
            "rejected": rejected,
            "source": f"pairs.jsonl:{line}",
            "split": split,
        }
    )


def test_an_equal_pair_is_left_out_and_names_the_first_one() -> None:
    rows = [
        pair("fox", "dog", 1),
        pair("dog", "fox", 2),
        pair("fox", "dog", 3),
        pair("fox", "dog", 4, question="Which?"),
        pair("fox", "dog ", 5),
        pair("fox", "dog", 6),
    ]
    kept, repeated = without_repeats(rows)
    assert [row.source[-1] for row in kept] == ["1", "2", "4", "5"]
    assert [(row.reason, row.where) for row in repeated] == [("duplicate", f"pairs.jsonl:{n}") for n in (3, 6)]
    assert repeated[0].detail == "prompt and both answers are those of pairs.jsonl:1"


def test_a_test_row_is_no_copy_of_a_training_row() -> None:
    rows = [pair("fox", "dog", 1, "test"), pair("fox", "dog", 2), pair("fox", "dog", 3, "test")]
    kept, repeated = without_repeats(rows)
    assert kept == rows and not repeated


def test_prompts_over_max_prompts_are_counted_and_the_others_stay_in_order() -> None:
    rows = [
        Conversation(
            messages=[Message(role="user", content=f"say {n}"), Message(role="assistant", content="fox")],
            source=f"rows.jsonl:{n}",
        )
        for n in range(9)
    ]

    def drawn(most: int | None) -> tuple[list[str], list[str]]:
        pairs = _Pairs()
        section = Prefer.model_validate({"rewards": ["exact"], "max_prompts": most, "rng_seed": 3})
        chosen = _drawn(section, rows, pairs)
        assert {each.reason for each in pairs.excluded} <= {"over_max_prompts"}
        return [row.source for row in chosen], [each.where for each in pairs.excluded]

    chosen, left = drawn(4)
    assert len(chosen) == 4 and len(left) == 5 and chosen == sorted(chosen)
    assert sorted(chosen + left) == [row.source for row in rows]
    assert drawn(None) == drawn(9) == ([row.source for row in rows], [])
