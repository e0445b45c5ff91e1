"""Pairs that differ in the exact fields alone (prefer.same_text)."""

from __future__ import annotations

import json

from tunesmith.judging.fields import Target
from tunesmith.recipe.align import Prefer
from tunesmith.stages.prefer import Candidates, _choose, _Pairs
from tunesmith.types import Conversation, Message

TARGET = Target(True, None, ("intent", "order"), "reply")
SECTION = Prefer.model_validate({"same_text": True, "rewards": ["fields"]})
ROW = Conversation.model_validate(
    {"messages": [Message(role="user", content="Where is it?"), Message(role="assistant", content="{}")]}
)


def answer(intent: str, order: str | None, reply: str) -> str:
    return json.dumps({"intent": intent, "order": order, "reply": reply})


def chosen_pair(*answers: str) -> _Pairs:
    pairs = _Pairs()
    scores = [1.0 - place / 10 for place in range(len(answers))]
    _choose(
        SECTION,
        ROW,
        Candidates(row=ROW.id, answers=list(answers), scores=list(scores), cut_off=[False] * len(answers)),
        TARGET,
        pairs,
    )
    return pairs


def test_the_rejected_answer_is_the_chosen_one_with_the_fields_of_the_worst() -> None:
    pairs = chosen_pair(
        answer("status", "SC-1", "We look."), answer("refund", "SC-1", "We pay."), answer("refund", None, "No.")
    )
    assert json.loads(pairs.kept[0].chosen) == {"intent": "status", "order": "SC-1", "reply": "We look."}
    assert json.loads(pairs.kept[0].rejected) == {"intent": "refund", "order": None, "reply": "We look."}
    assert not pairs.excluded


def test_candidates_with_the_same_fields_give_no_pair() -> None:
    pairs = chosen_pair(answer("status", None, "We look."), answer("status", None, "We pay."))
    assert not pairs.kept and [each.reason for each in pairs.excluded] == ["same_fields"]


def test_a_worst_candidate_that_is_no_json_gives_no_pair() -> None:
    assert chosen_pair(answer("status", None, "We look."), "no JSON").excluded[0].reason == "same_fields"


def test_both_answers_are_written_alike_whatever_blanks_the_model_wrote() -> None:
    pairs = chosen_pair(
        '{"intent":"status","order":null,"reply":"Gr\\u00fc\\u00dfe"}', answer("refund", None, "We pay.")
    )
    assert pairs.kept[0].rejected == pairs.kept[0].chosen.replace("status", "refund")
