"""Two data sets compared: counts that add up, moves, changed replies."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.statistics.counts import Count
from tunesmith.data.statistics.difference import Difference, find_difference
from tunesmith.data.statistics.side_by_side import equal_tables, row_counts, tables
from tunesmith.data.statistics.survey import SurveyOptions
from tunesmith.types import Conversation, Excluded, Message

OPTIONS = SurveyOptions(max_rows=0, num_clusters=1, num_names=1000, rng_seed=1, num_threads=1, closely=False)


def row(prompt: str, reply: str, system: str = "", **fields: Any) -> Conversation:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    return Conversation(messages=messages, **fields)


def compare(a: list[Any], b: list[Any], num_examples: int = 5) -> Difference:
    return find_difference(
        lambda: iter(a), lambda: iter(b), names=("a", "b"), options=OPTIONS, num_examples=num_examples, count_tokens=None,
        on_rows=lambda _: None,
    )  # fmt: skip


def test_a_set_is_equal_to_itself_and_its_own_repetitions_are_counted() -> None:
    rows = [row("q1", "a"), row("q2", "b"), row("q1", "a")]
    found = compare(rows, rows)
    assert (found.num_both, found.num_other_reply, found.before.num_only, found.after.num_only) == (2, 0, 0, 0)
    assert found.before.num_repeats == found.after.num_repeats == 1
    assert found.moves == [] and found.changed_fields == [] and found.only_before == []


def test_rows_of_one_set_alone_and_changed_replies_are_told_apart() -> None:
    a = [row("both", "x"), row("changed", "old words"), row("only a", "x"), row("again", "1"), row("again", "2")]
    b = [row("only b", "x"), row("Changed ", "new words"), row("both", "x"), row("again", "3")]
    found = compare(a, b)
    assert (found.num_both, found.num_other_reply) == (1, 2)
    assert (found.before.num_only, found.after.num_only) == (2, 1)
    assert [shown.prompt for shown in found.only_before] == ["only a", "again"]
    assert [(pair.before.reply, pair.after.reply) for pair in found.other_reply] == [
        ("old words", "new words"),
        ("1", "3"),
    ]


def test_the_lines_of_the_counts_add_up() -> None:
    a = [row(f"q{n % 9}", f"a{n % 4}") for n in range(60)] + [Excluded(reason="bad_row", raw="x")]
    b = [row(f"q{n % 11}", f"a{n % 3}") for n in range(50)]
    *lines, total, unread = row_counts(compare(a, b))
    assert (total[1], total[2]) == (60, 50) and (unread[1], unread[2]) == (1, 0)
    assert (sum(line[1] for line in lines), sum(line[2] for line in lines)) == (60, 50)


def test_rows_that_moved_between_train_test_and_left_out_are_counted_by_their_way() -> None:
    def left_out(prompt: str, reason: str) -> Excluded:
        return Excluded(reason=reason, conversation=row(prompt, "x"))

    a = [
        row("1", "x", split="train"),
        row("2", "x", split="train"),
        row("3", "x", split="test"),
        left_out("4", "exact"),
    ]
    b = [
        row("1", "x", split="train"),
        row("2", "x", split="test"),
        left_out("3", "language"),
        row("4", "x", split="train"),
    ]
    found = compare(a, b)
    assert {(move.before, move.after, move.num) for move in found.moves} == {
        ("train", "test", 1), ("test", "left out: language", 1), ("left out: exact", "train", 1),
    }  # fmt: skip
    assert found.fates == {
        "train": (2, 2), "test": (1, 1), "left out: exact": (1, 0), "left out: language": (0, 1),
    }  # fmt: skip
    assert {(pair.before.prompt, pair.after.fate) for pair in found.moved} == {
        ("2", "test"), ("3", "left out: language"), ("4", "train"),
    }  # fmt: skip


def test_a_row_that_is_kept_and_left_out_as_its_copy_counts_as_kept() -> None:
    kept, copy = row("1", "x", split="train"), Excluded(reason="exact", conversation=row("1", "x"))
    found = compare([kept, copy], [kept])
    assert found.moves == [] and found.before.num_repeats == 1


def test_a_system_message_and_other_fields_are_changes_of_the_same_row() -> None:
    a = [row("1", "x", source="a.jsonl:1"), row("2", "x", source="a.jsonl:2", licence="MIT")]
    b = [row("1", "x", system="Be kind", source="a.jsonl:7"), row("2", "x", source="b.jsonl:2", metadata={"k": 1})]
    found = compare(a, b)
    assert found.num_both == 2
    assert sorted(found.changed_fields, key=lambda count: count.name) == [
        Count("licence", 1), Count("metadata", 1), Count("source", 1), Count("system message", 1),
    ]  # fmt: skip


def test_names_stand_side_by_side_with_their_number_in_each() -> None:
    a = [row(f"{n}", "x", source=f"s{n % 20}.jsonl:1") for n in range(40)]
    b = [row(f"{n}", "x", source=f"s{n % 3}.jsonl:1") for n in range(6)]
    found = compare(a, b)
    pairs = dict(tables(found.before.survey, found.after.survey))["sources"]
    assert pairs["s0.jsonl"] == (2, 2) and pairs["(8 others)"] == (16, 0)
    assert "sources" not in equal_tables(found.before.survey, found.after.survey)
    # 40 and 6 rows of no stated licence: only the number of rows differs, which the counts say.
    assert "licences" in equal_tables(found.before.survey, found.after.survey)
    assert "licences" not in dict(tables(found.before.survey, found.after.survey))
    same = compare(a, a)
    assert list(tables(same.before.survey, same.after.survey)) == []
    assert "sources" in equal_tables(same.before.survey, same.after.survey)
    assert (sum(x for x, _ in pairs.values()), sum(y for _, y in pairs.values())) == (40, 6)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_only_so_many_examples_are_held(number: int) -> None:
    found = compare([row(f"a{n}", "x") for n in range(5)], [row(f"b{n}", "x") for n in range(5)], num_examples=number)
    assert len(found.only_before) == len(found.only_after) == number


def test_an_empty_set_can_be_compared() -> None:
    found = compare([], [row("1", "x")])
    assert (found.num_both, found.before.num_rows, found.after.num_only) == (0, 0, 1)
