"""Decisions of a person: which row each one finds again, and what it does to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.identity import with_system_prompt
from tunesmith.data.review import (
    MARK,
    Decision,
    Review,
    finish_last_line,
    is_protected,
    load_decisions,
    open_review,
    overrules,
)
from tunesmith.errors import DataError
from tunesmith.recipe import Curate
from tunesmith.text.jsonl import RecordLog
from tunesmith.types import Conversation, Message


def row(asked: str, reply: str, system: str = "", **fields) -> Conversation:
    lead = [Message(role="system", content=system)] if system else []
    turns = [Message(role="user", content=asked), Message(role="assistant", content=reply)]
    return Conversation(messages=[*lead, *turns], **fields)


def decide(seen: Conversation, verdict: str, edited: Conversation | None = None, reason: str = "") -> Decision:
    return Decision.model_validate(
        {
            "verdict": verdict,
            "id": seen.id,
            "messages": seen.messages,
            "edited": edited.messages if edited else None,
            "reason": reason,
        }
    )


def over(rows: list[Conversation], *decisions: Decision, system_prompt: str | None = None) -> tuple[Review, list]:
    review = Review(decisions, system_prompt)
    review.look(rows)
    return review, [review.apply(each) for each in rows]


OLD, NEW, OTHER = row("a", "old"), row("a", "new"), row("b", "c")
MINE = row("a", "mine")


def test_a_row_that_comes_again_gets_its_decision():
    review, verdicts = over([OLD, OTHER], decide(OLD, "keep"), decide(OTHER, "reject", reason="wrong"))
    assert verdicts[0].metadata == {MARK: "keep"} and verdicts[0].id == OLD.id
    assert verdicts[1] == ("reviewed", "rejected by hand: wrong")
    assert review.counts() == {"kept": 1, "edited": 0, "edited_other_reply": 0, "rejected": 1, "stale": 0, "no_row": 0}
    assert [note.level for note in review.notes()] == ["info"]


def test_an_edit_replaces_the_messages_and_leaves_origin_and_source():
    seen = row("a", "old", source="f:1", origin="o", split="test")
    _, (edited,) = over([seen], decide(seen, "edit", MINE))
    assert (edited.messages, edited.id) == (MINE.messages, MINE.id)
    assert (edited.source, edited.origin, edited.split, edited.metadata) == ("f:1", "o", "test", {MARK: "edit"})


@pytest.mark.parametrize("verdict", ["keep", "reject"])
def test_a_decision_on_a_reply_that_is_gone_does_not_apply_to_the_new_one_and_is_counted(verdict: str):
    review, verdicts = over([NEW], decide(OLD, verdict))
    assert verdicts == [None]
    assert review.counts()["stale"] == 1 and sum(review.counts().values()) == 1
    assert review.notes()[-1].level == "warning"
    assert "on replies that are gone, and do not apply to the new ones: 1;" in review.notes()[-1].message
    standing = review.standing(NEW)
    assert standing is not None and not standing.decided and standing.decision.messages == OLD.messages


def test_an_edit_wins_over_a_new_reply_to_its_prompt():
    review, (edited,) = over([NEW], decide(OLD, "edit", MINE))
    assert edited.messages == MINE.messages
    assert review.counts()["edited_other_reply"] == 1
    assert "replace a reply which is new since then: 1" in review.notes()[1].message


def test_another_reply_beside_the_seen_row_is_a_row_of_its_own():
    review, verdicts = over([OLD, NEW], decide(OLD, "edit", MINE))
    assert verdicts[0].messages == MINE.messages and verdicts[1] is None
    review, verdicts = over([NEW, OLD], decide(OLD, "reject"))
    assert verdicts == [None, ("reviewed", "rejected by hand")]
    assert review.counts()["rejected"] == 1 and review.counts()["stale"] == 0 and review.standing(NEW) is None


def test_the_recipes_system_prompt_is_no_part_of_a_row():
    decisions = [decide(OLD, "edit", MINE), decide(OTHER, "reject")]
    rows = [with_system_prompt(each, "Be brief.") for each in (OLD, OTHER)]
    _, (edited, rejected) = over(rows, *decisions, system_prompt="Be brief.")
    assert edited.messages == with_system_prompt(MINE, "Be brief.").messages
    assert rejected == ("reviewed", "rejected by hand")
    # Decided on with the old prompt in front, or found in a file that has the prompt as its own: the same rows.
    with_prompt = decide(rows[0], "keep")
    assert over([rows[0]], with_prompt, system_prompt="Be brief.")[1][0].metadata == {MARK: "keep"}
    assert over([OLD], with_prompt, system_prompt="Be brief.")[1][0].metadata == {MARK: "keep"}


def test_a_system_message_of_the_row_itself_tells_rows_apart():
    as_pirate, as_clerk = row("a", "old", system="a pirate"), row("a", "old", system="a clerk")
    _, verdicts = over([as_pirate, as_clerk], decide(as_pirate, "reject"), system_prompt="Be brief.")
    assert verdicts == [("reviewed", "rejected by hand"), None]


def test_the_last_decision_on_a_row_counts_and_one_can_be_taken_back():
    _, verdicts = over([OLD], decide(OLD, "reject"), decide(OLD, "keep"))
    assert verdicts[0].metadata == {MARK: "keep"}
    review, verdicts = over([OLD], decide(OLD, "reject"), decide(OLD, "undecided"))
    assert verdicts == [None] and sum(review.counts().values()) == 0 and review.standing(OLD) is None


def test_what_was_decided_on_an_edited_text_follows_the_edit():
    twice = row("a", "mine, better")
    review, verdicts = over([OLD], decide(OLD, "edit", MINE), decide(MINE, "edit", twice))
    assert verdicts[0].messages == twice.messages
    assert review.counts()["edited"] == 2
    _, verdicts = over([OLD], decide(OLD, "edit", MINE), decide(MINE, "keep"))
    assert verdicts[0].messages == MINE.messages
    _, verdicts = over([OLD], decide(OLD, "edit", MINE), decide(MINE, "reject", reason="no"))
    assert verdicts == [("reviewed", "rejected by hand: no")]
    # There and back again ends at the last word.
    _, verdicts = over([OLD], decide(OLD, "edit", MINE), decide(MINE, "edit", OLD))
    assert verdicts[0].messages == OLD.messages


def test_an_edited_row_that_comes_back_is_decided():
    review, verdicts = over([MINE, NEW], decide(OLD, "edit", MINE))
    assert verdicts[0].messages == MINE.messages and verdicts[0].metadata == {MARK: "edit"}
    assert verdicts[1] is None and review.counts()["edited"] == 1


def test_a_decision_whose_prompt_is_not_there_is_counted():
    review, verdicts = over([OTHER], decide(OLD, "edit", MINE))
    assert verdicts == [None] and review.counts()["no_row"] == 1
    assert "whose prompt is not among the rows: 1" in review.notes()[-1].message


def test_prompts_are_compared_without_case_and_spacing():
    review, _ = over([row("  A ", "new")], decide(OLD, "keep"))
    assert review.counts()["stale"] == 1


def test_what_a_person_wants_passes_filters_but_not_what_must_hold():
    _review, (kept, edited, _) = over([OLD, OTHER, NEW], decide(OLD, "keep"), decide(OTHER, "edit", MINE))
    assert is_protected(kept) and is_protected(edited) and not is_protected(NEW)
    assert overrules(kept, "rouge_l") and overrules(edited, "refusal")
    for reason in ("no_reply", "in_test", "contaminated", "contaminated_test", "rouge_l_test", "duplicate", "schema"):
        assert not overrules(kept, reason)
    assert not overrules(NEW, "rouge_l")


def test_a_mark_of_an_earlier_run_protects_nothing():
    marked = OLD.model_copy(update={"metadata": {MARK: "keep", "n": 1}})
    _, (bare,) = over([marked], decide(OTHER, "keep"))
    assert bare.metadata == {"n": 1}


def test_a_decision_on_a_row_as_a_filter_left_it_is_found_after_that_filter():
    before = [row("a", "call 555"), row("b", "call 556"), row("c", "call 557")]
    after = [row("a", "call [PHONE]"), row("b", "call [PHONE]"), row("c", "call [PHONE]")]
    decisions = [decide(after[0], "keep"), decide(after[1], "reject"), decide(after[2], "edit", row("c", "mine"))]
    review, first = over(before, *decisions)
    assert first[:2] == [None, None] and first[2].messages == row("c", "mine").messages
    second = [review.apply_again(each) for each in (after[0], after[1], first[2])]
    assert second[0].metadata == {MARK: "keep"} and second[1:] == [("reviewed", "rejected by hand"), None]
    counts = review.counts()
    assert (counts["kept"], counts["rejected"], counts["edited_other_reply"], counts["stale"]) == (1, 1, 1, 0)


def test_a_kept_row_that_a_filter_rewrites_stays_protected():
    review, (kept,) = over([OLD], decide(OLD, "keep"))
    masked = kept.model_copy(update={"messages": row("a", "[PHONE]").messages, "id": ""})
    assert review.apply_again(masked) is None and overrules(masked, "rouge_l")


def test_no_decisions_leave_every_row_as_it_is():
    review, verdicts = over([OLD, NEW])
    assert verdicts == [None, None] and review.notes() == []


def test_an_overlay_is_read_back_and_a_torn_line_left_out(tmp_path: Path):
    path = tmp_path / "review.jsonl"
    with RecordLog(path) as log:
        log.append(decide(OLD, "edit", MINE))
        log.append(decide(OTHER, "reject", reason="née"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"verdict":"keep","id"')
    assert [each.verdict for each in load_decisions(path)] == ["edit", "reject"]
    review = open_review(path, None)
    assert review.apply(OTHER) == ("reviewed", "rejected by hand: née")
    finish_last_line(path)
    RecordLog(path).close()
    assert path.read_bytes() == whole


def test_a_line_written_by_hand_without_a_newline_is_not_lost(tmp_path: Path):
    path = tmp_path / "review.jsonl"
    path.write_text(decide(OLD, "keep").model_dump_json())
    assert len(load_decisions(path)) == 1
    finish_last_line(path)
    with RecordLog(path) as log:
        log.append(decide(OTHER, "keep"))
    assert len(load_decisions(path)) == 2


def test_a_wrong_line_is_named(tmp_path: Path):
    path = tmp_path / "review.jsonl"
    good = decide(OLD, "keep").model_dump_json()
    path.write_text(f"{good}\n{good.replace('keep', 'perhaps')}\n")
    with pytest.raises(DataError, match=r"review.jsonl:2: this line is no Decision: field 'verdict'") as caught:
        load_decisions(path)
    assert caught.value.hint == "correct the line, or take it out"
    path.write_text(good.replace("keep", "edit") + "\n")
    with pytest.raises(DataError, match=r"review.jsonl:1: the verdict is 'edit', and there are no edited messages"):
        load_decisions(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_decisions(tmp_path / "nope")


def test_the_overlay_is_a_file_of_the_recipe_so_that_its_content_is_part_of_the_key():
    section = Curate.model_validate({"review": "review.jsonl", "decontaminate_against": ["e.jsonl"]})
    assert section.file_names() == ["e.jsonl", "review.jsonl"]
    assert Curate().file_names() == []
