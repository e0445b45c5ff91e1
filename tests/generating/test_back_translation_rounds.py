"""Back-translation in rounds, its top class, and how its rows are told from the examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generating.workbench import SEEDS, Outcome, generate, last, seed, words
from tunesmith.generating.terms import Stamp, Terms
from tunesmith.types import Task, TeacherRequest

TEXTS = ("Oil the chain weekly.", "Buy now! Cheap tyres here!", "Pump the tyre to four bars.")


def write(folder: Path, lines: Any = TEXTS) -> dict[str, Path]:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(line if isinstance(line, dict) else {"text": line}) + "\n" for line in lines))
    return {"texts.jsonl": path}


def is_score(request: TeacherRequest) -> bool:
    return "one digit" in last(request)


def scores(**of: list[int]) -> Any:
    """A teacher that scores the pairs of the text that holds a word: the first, the second ... of them."""
    seen: dict[str, list[str]] = {}

    def answer(request: TeacherRequest) -> str:
        if not is_score(request):
            return "How about " + words(request, 6)
        word = next(word for word in of if word in last(request))
        keys = seen.setdefault(word, [])
        if request.key("t") not in keys:
            keys.append(request.key("t"))
        return str(of[word][keys.index(request.key("t"))])

    return answer


def rounds(folder: Path, script: Any, *, texts: Any = TEXTS, **options: Any) -> Outcome:
    chosen = {"num_rows": 10, "seeds": [], **options}
    return generate("back_translate", script, folder, files=write(folder, texts), **chosen)


def test_the_top_class_alone_is_kept_where_the_recipe_says_so(tmp_path: Path) -> None:
    script = scores(chain=[5], Cheap=[4], Pump=[5])
    assert len(rounds(tmp_path, script).kept) == 3
    found = rounds(tmp_path, scores(chain=[5], Cheap=[4], Pump=[5]), min_score=5)
    assert [row.metadata["score"] for row in found.kept] == [5, 5]
    assert [row.detail for row in found.rejected] == ["the teacher gives 4 of 5, needed 5"]


def test_a_text_without_a_kept_row_is_tried_again_and_sees_what_was_kept(tmp_path: Path) -> None:
    script = scores(chain=[5], Cheap=[1, 2, 1], Pump=[3, 5])
    found = rounds(tmp_path, script, score_rounds=3, min_score=5, seeds=SEEDS, num_seeds_shown=20)
    assert [(row.reply, row.metadata["score_round"]) for row in found.kept] == [
        ("Oil the chain weekly.", 1),
        ("Pump the tyre to four bars.", 2),
    ]
    assert found.reasons == ["low_score"] * 4
    guesses = [last(request) for request in found.asked if not is_score(request)]
    assert [text.count("Instruction:") for text in guesses] == [0, 0, 0, 4, 4, 5]  # three seeds, then what was kept
    assert "How do I patch a bicycle tyre?" in guesses[3]
    assert len(found.asked) == 12  # two a try
    second = found.kept[1]
    assert set(second.metadata["seeds"]) == {row.id for row in SEEDS}
    assert "seeds" not in found.kept[0].metadata


def test_one_round_asks_what_it_always_asked(tmp_path: Path) -> None:
    found = rounds(tmp_path, scores(chain=[5], Cheap=[1], Pump=[3]), seeds=SEEDS)
    assert len(found.asked) == 6
    assert not any("Instruction:" in last(request) for request in found.asked)


def test_rounds_end_when_enough_rows_are_kept(tmp_path: Path) -> None:
    found = rounds(tmp_path, scores(chain=[5], Cheap=[1], Pump=[5]), num_rows=2, score_rounds=8)
    assert len(found.kept) == 2
    assert len(found.asked) == 6


def test_a_longer_order_begins_with_a_shorter_one_also_across_rounds(tmp_path: Path) -> None:
    def half(request: TeacherRequest) -> str:
        return (
            "3"
            if is_score(request) and int(request.key("t")[:4], 16) % 2
            else "5"
            if is_score(request)
            else words(request, 6)
        )

    texts = [f"Text {n} about {'abcdefghij'[n] * 5}" for n in range(10)]
    short, long = (rounds(tmp_path, half, texts=texts, num_rows=number, score_rounds=4) for number in (4, 10))
    assert [row.id for row in long.kept[:4]] == [row.id for row in short.kept]
    assert {request.key("t") for request in short.asked} <= {request.key("t") for request in long.asked}
    assert {row.metadata["score_round"] for row in long.kept} > {1}


@pytest.mark.parametrize(("own", "expected"), [(None, "Be brief."), ("From the web.", "From the web."), ("", None)])
def test_rows_say_that_they_are_augmented_and_may_have_a_system_message_of_their_own(
    tmp_path: Path, own: str | None, expected: str | None
) -> None:
    script = scores(chain=[5], Cheap=[1], Pump=[5])
    found = rounds(tmp_path, script, task=Task(system_prompt="Be brief."), augmented_system_prompt=own)
    assert {row.metadata["source_class"] for row in found.kept} == {"augmented"}
    systems = {row.messages[0].content if row.messages[0].role == "system" else None for row in found.kept}
    assert systems == {expected}


def test_a_row_stands_under_the_terms_of_its_text_and_of_what_was_shown_with_it(tmp_path: Path) -> None:
    texts = [
        {"text": TEXTS[0], "licence": "odbl-1.0"},
        {"text": TEXTS[2], "licence": "cc-by-4.0", "made_from": {"licence": "cc-by-4.0", "commercial_use": False}},
    ]
    seeds = [seed("a question", "an answer", licence="cc0-1.0")]
    script = scores(chain=[5], Pump=[3, 5])
    found = rounds(tmp_path, script, texts=texts, seeds=seeds, score_rounds=2, num_seeds_shown=5)
    stamped = [Stamp([Terms("yes", "x", "apache-2.0")], seeds)(row) for row in found.kept]
    assert stamped[0].licence == "odbl-1.0 AND apache-2.0"
    assert sorted((stamped[1].licence or "").split(" AND ")) == ["apache-2.0", "cc-by-4.0", "cc0-1.0", "odbl-1.0"]
    assert [row.metadata["commercial_use"] for row in stamped] == [True, False]
