"""What goes in comes out once, kept or with a reason; what is held out is never shown, however the rows came."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.identity import prompt_key
from tunesmith.data.intake import KINDS, Intake, take_examples
from tunesmith.text.jsonl import dump_record, parse_record
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Message, Preference
from tunesmith.workers.local import ThisProcess

Sketch = tuple[str, int, str | None, str | None]  # kind, number of its prompt, origin, split

SKETCHES = st.lists(
    st.tuples(
        st.sampled_from(["talk", "alone", "pair", "thumb", "text"]),
        st.integers(0, 6),
        st.sampled_from([None, None, "a", "b", "c"]),
        st.sampled_from([None, None, None, "train", "test"]),
    ),
    max_size=30,
)
FRACTIONS = st.sampled_from([0.0, 0.2, 0.5])


def built(sketches: Sequence[Sketch]) -> list[Example]:
    return [example(number, *sketch) for number, sketch in enumerate(sketches, start=1)]


def example(number: int, kind: str, prompt: int, origin: str | None, split: Any) -> Example:
    common: dict[str, Any] = {"source": f"rows.jsonl:{number}", "split": split, "origin": origin or ""}
    asked = [Message(role="user", content=f"Question {prompt}?")]
    match kind:
        case "talk":
            return Conversation(messages=[*asked, Message(role="assistant", content=f"a{number}")], **common)
        case "alone":
            return Conversation(messages=asked, metadata={"gold": 1}, **common)
        case "pair":
            return Preference(prompt=asked, chosen=f"c{number}", rejected="r", **common)
        case "thumb":
            return Labelled(prompt=asked, reply=f"a{number}", desirable=True, **common)
        case _:
            return Document(text=f"Text {prompt}.", **common)


@contextmanager
def intake_of(
    examples: Sequence[Example], fraction: float, *, rng_seed: int = 1, at_a_time: int = 7, system: str | None = None
) -> Iterator[Intake]:
    with tempfile.TemporaryDirectory() as folder, Intake(Path(folder) / "rows.jsonl", ThisProcess()) as intake:
        for begin in range(0, len(examples), at_a_time):
            some = examples[begin : begin + at_a_time]
            intake.add(take_examples((each.model_copy(deep=True) for each in some), system))
        intake.decide(fraction, rng_seed)
        yield intake


def kept(intake: Intake, kind: type[Example]) -> list[Example]:
    lines = b"".join(intake.kept(kind)).splitlines()
    return [parse_record(line, kind, where="kept") for line in lines]


def outcome(sketches: Sequence[Sketch], fraction: float, **how: Any) -> tuple[list[Example], list[Excluded]]:
    with intake_of(built(sketches), fraction, **how) as intake:
        return [each for kind in KINDS for each in kept(intake, kind)], list(intake.leaked())


def place(source: str) -> int:
    return int(source.rpartition(":")[2])


def prompt_of(row: Example) -> str:
    return row.text if isinstance(row, Document) else prompt_key(row)


@settings(max_examples=80, deadline=None)
@given(SKETCHES, FRACTIONS)
def test_every_row_comes_out_once_and_the_kinds_keep_their_order(sketches: list[Sketch], fraction: float):
    with intake_of(built(sketches), fraction) as intake:
        by_kind = {kind: kept(intake, kind) for kind in KINDS}
        leaked = list(intake.leaked())
        assert len(intake) == len(sketches)
        for kind, rows in by_kind.items():
            places = [place(row.source) for row in rows]
            assert places == sorted(places)
            sides = Counter("test" if row.split == "test" else "train" for row in rows)
            assert (intake.num(kind, "train"), intake.num(kind, "test")) == (sides["train"], sides["test"])
        alone = [row for row in by_kind[Conversation] if isinstance(row, Conversation) and row.reply is None]
        assert intake.num_alone == len(alone)
        assert (intake.first_alone is None) == (not any(sketch[0] == "alone" for sketch in sketches))
    out = sorted(
        [place(row.source) for rows in by_kind.values() for row in rows] + [place(row.where) for row in leaked]
    )
    assert out == list(range(1, len(sketches) + 1))


@settings(max_examples=80, deadline=None)
@given(SKETCHES, FRACTIONS)
def test_no_prompt_and_no_origin_is_on_both_sides(sketches: list[Sketch], fraction: float):
    rows, leaked = outcome(sketches, fraction)
    test = [row for row in rows if row.split == "test"]
    others = [row for row in rows if row.split != "test"]
    assert not {prompt_of(row) for row in test} & {prompt_of(row) for row in others}
    assert not {row.origin for row in test} & {row.origin for row in others}
    assert {each.reason for each in leaked} <= {"in_test"}
    marked = [sketch[3] for sketch in sketches]
    assert all(marked[place(each.where) - 1] != "test" for each in leaked)


@settings(max_examples=60, deadline=None)
@given(SKETCHES, FRACTIONS)
def test_what_a_person_marked_stays_as_it_was_marked(sketches: list[Sketch], fraction: float):
    rows, leaked = outcome(sketches, fraction)
    marked = {number: sketch[3] for number, sketch in enumerate(sketches, start=1)}
    assert all(row.split == marked[place(row.source)] for row in rows if marked[place(row.source)])
    if not fraction:
        assert all(row.split == marked[place(row.source)] for row in rows)
    tests = {number for number, split in marked.items() if split == "test"}
    assert tests <= {place(row.source) for row in rows}
    assert tests.isdisjoint(place(each.where) for each in leaked)


@settings(max_examples=40, deadline=None)
@given(SKETCHES, FRACTIONS, st.integers(1, 30))
def test_how_many_rows_come_at_a_time_changes_nothing(sketches: list[Sketch], fraction: float, at_a_time: int):
    assert outcome(sketches, fraction, at_a_time=at_a_time) == outcome(sketches, fraction, at_a_time=1000)


@settings(max_examples=40, deadline=None)
@given(SKETCHES)
def test_rows_of_one_prompt_and_no_origin_are_one_origin_with_or_without_a_system_prompt(sketches: list[Sketch]):
    sketches = [(kind, prompt, None, split) for kind, prompt, _, split in sketches]
    plain, _ = outcome(sketches, 0.0)
    briefed, _ = outcome(sketches, 0.0, system="Be brief.")
    origins: dict[str, set[str]] = {}
    for row in plain:
        origins.setdefault(prompt_of(row), set()).add(row.origin)
    assert all(len(each) == 1 for each in origins.values())
    assert {row.source: row.origin for row in briefed}.items() <= {row.source: row.origin for row in plain}.items()
    assert all(row.messages[0].content == "Be brief." for row in briefed if isinstance(row, Conversation))


def test_a_share_of_the_origins_is_held_out_and_the_seed_decides_which():
    sketches: list[Sketch] = [("talk", number, None, None) for number in range(200)]
    held = [
        {row.source for row in outcome(sketches, 0.25, rng_seed=seed)[0] if row.split == "test"} for seed in (1, 1, 2)
    ]
    assert [len(each) for each in held] == [50] * 3
    assert held[0] == held[1] != held[2]


def test_rows_that_nothing_was_decided_on_keep_their_bytes():
    rows = [*built([("talk", 1, "a", None), ("talk", 2, "b", "train"), ("pair", 3, "c", "test")])]
    with intake_of(rows, 0.0) as intake:
        lines = b"".join(line for kind in KINDS for line in intake.kept(kind))
    assert lines == b"".join(map(dump_record, rows))


def test_a_row_that_names_the_id_of_a_row_follows_that_rows_origin():
    seed, other = built([("talk", 1, None, None), ("talk", 2, None, None)])
    paraphrase = example(3, "talk", 3, seed.id, None)
    with intake_of([paraphrase, seed, other], 0.0) as intake:
        first, second, third = kept(intake, Conversation)
    assert first.origin == second.origin != third.origin


def test_a_row_that_leaks_says_which_test_row_it_would_show():
    rows, leaked = outcome([("talk", 1, None, None), ("pair", 1, None, "test"), ("text", 1, "b", None), ("text", 2, "b", "test")], 0.0)  # fmt: skip
    assert [place(row.source) for row in rows] == [2, 4]
    assert [(each.where, each.detail) for each in leaked] == [
        ("rows.jsonl:1", "the prompt is that of the test row rows.jsonl:2"),
        ("rows.jsonl:3", "its origin 'b' also has test rows"),
    ]
    assert leaked[0].conversation is not None and leaked[1].raw["text"] == "Text 1."
