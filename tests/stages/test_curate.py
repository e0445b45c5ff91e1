"""curate: every row ends as train, test or excluded with a reason, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.hashing import digest_file
from tunesmith.protocols import Context
from tunesmith.recipe import Curate, Ingest
from tunesmith.stages import curate, ingest
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Artifact, Conversation, Excluded, Inputs, Manifest, Message, Outcome, Split, Task


def artifact(path: Path, rows: list[Conversation], task: Task) -> Artifact:
    write_records(path / "conversations.jsonl", rows)
    write_records(path / "task.json", [task])
    manifest = Manifest(
        kind="conversations", stage=path.name, stage_version=1, key="k", digest="d", section={}, inputs={}, counts={},
        facts={}, files={}, provenance={},
    )  # fmt: skip
    return Artifact(path, manifest)


def row(
    prompt: str, reply: str | None = "fine", *, split: Split | None = None, source: str = "", origin: str = ""
) -> Conversation:
    messages = [Message(role="user", content=prompt)]
    if reply is not None:
        messages.append(Message(role="assistant", content=reply))
    return Conversation(messages=messages, split=split, source=source, origin=origin)


Result = tuple[Outcome, list[Conversation], list[Conversation], list[Excluded]]


def run(
    tmp_path: Path, ctx: Context, given: list[Conversation], generated: list[Conversation] | None = None,
    task: Task | None = None, generated_task: Task | None = None, **fields: Any,
) -> Result:  # fmt: skip
    artifacts = {"ingest": artifact(tmp_path / "ingest", given, task or Task())}
    if generated is not None:
        artifacts["generate"] = artifact(tmp_path / "generate", generated, generated_task or task or Task())
    return run_on(tmp_path, ctx, artifacts, **fields)


def run_on(tmp_path: Path, ctx: Context, artifacts: dict[str, Artifact], **fields: Any) -> Result:
    out = tmp_path / "curated"
    outcome = curate.run(Curate.model_validate(fields), Inputs(artifacts, {}), out, ctx)
    train = read_records(out / "train.jsonl", Conversation)
    test = read_records(out / "test.jsonl", Conversation)
    excluded = read_records(out / "excluded.jsonl", Excluded)
    counts = dict(outcome.counts)
    assert counts.pop("rows_in") == sum(counts.values()) == len(train) + len(test) + len(excluded)
    assert outcome.facts == {"num_train": len(train), "num_test": len(test)}
    assert all(each.split == "train" for each in train) and all(each.split == "test" for each in test)
    assert all(each.conversation is not None for each in excluded)
    return outcome, train, test, excluded


LONG = "how do i change the back tyre of my bicycle"


def test_rows_of_every_kind_end_where_they_should(tmp_path: Path, ctx: Context):
    given = [
        row(LONG, source="a:1"),
        row("what does a helmet cost", source="a:2"),
        row("What does  a helmet cost", "FINE", source="a:3"),
        row("what does a helmet cost", "twenty", source="a:4"),
        row("open today?", None, source="a:5"),
        row("may i see the picture of it", source="a:6"),
        row(LONG + " today", source="a:7"),
        row("when are you open on the coming sunday", source="t:1", split="test"),
    ]
    generated = [
        row("when are you open on the coming monday", source="g:1"),
        row(LONG + " now", source="g:2"),
        row("do you buy old bicycles", source="g:3"),
    ]
    outcome, train, test, excluded = run(tmp_path, ctx, given, generated, blacklist="picture")
    assert outcome.kind == "curated"
    assert [each.source for each in train] == ["a:1", "a:2", "g:3"]
    assert [each.source for each in test] == ["t:1"]
    assert {each.where: each.reason for each in excluded} == {
        "a:3": "duplicate", "a:4": "conflicting_reply", "a:5": "no_reply", "a:6": "blacklist", "a:7": "rouge_l",
        "g:1": "rouge_l_test", "g:2": "rouge_l",
    }  # fmt: skip
    assert outcome.counts == {
        "rows_in": 11, "train": 3, "test": 1, "excluded_blacklist": 1, "excluded_conflicting_reply": 1,
        "excluded_duplicate": 1, "excluded_no_reply": 1, "excluded_rouge_l": 2, "excluded_rouge_l_test": 1,
    }  # fmt: skip


def test_test_rows_come_first_and_likeness_never_removes_one(tmp_path: Path, ctx: Context):
    given = [
        row(LONG, source="a:1"),
        row("something else", source="a:2"),
        row(LONG + " now", source="t:1", split="test"),
        row(LONG + " today", source="t:2", split="test"),
        row(LONG, "other", source="t:3", split="test"),
    ]
    _, train, test, excluded = run(tmp_path, ctx, given)
    assert [each.source for each in test] == ["t:1", "t:2", "t:3"]
    assert [each.source for each in train] == ["a:2"]
    assert [(each.where, each.reason) for each in excluded] == [("a:1", "conflicting_reply")]


def test_similarity_can_be_switched_off(tmp_path: Path, ctx: Context):
    given = [row(f"{LONG} {n}", source=f"a:{n}") for n in range(5)]
    _, train, _, _ = run(tmp_path, ctx, given, max_similarity=1)
    assert len(train) == 5
    _, train, _, excluded = run(tmp_path, ctx, given)
    assert (len(train), {each.reason for each in excluded}) == (1, {"rouge_l"})


def test_many_alike_rows_and_missing_test_rows_are_pointed_out(tmp_path: Path, ctx: Context, sink: Any):
    run(tmp_path, ctx, [row(f"{LONG} {n}") for n in range(5)])
    notes = [event.message for event in sink.events if event.type == "note"]
    assert notes[0].startswith("there are no test rows, so the result will not be measured")
    assert notes[1].startswith("4 rows are left out because their prompts are alike (ROUGE-L above 0.7), and 1 stay")


def test_undecided_rows_are_split_by_origin(tmp_path: Path, ctx: Context):
    words = ["apple", "brick", "cloud", "delta", "ember", "frost", "grape", "heron"]
    given = [row(f"{word} {word}x", origin=word) for word in words]
    generated = [row(f"{word}y {word}z", origin=word) for word in words]
    outcome, train, test, _ = run(tmp_path, ctx, given, generated, test_fraction=0.25)
    assert outcome.counts["test"] == 4
    assert {each.origin for each in train} & {each.origin for each in test} == set()


def test_an_origin_marked_for_both_sides_is_taken_from_training(tmp_path: Path, ctx: Context):
    given = [row("one", split="train", origin="x", source="a:1"), row("two", split="test", origin="x"), row("three")]
    _, train, _, excluded = run(tmp_path, ctx, given)
    assert [each.messages[0].content for each in train] == ["three"]
    assert [(each.where, each.reason, each.detail) for each in excluded] == [
        ("a:1", "in_test", "its origin 'x' also has test rows")
    ]


def test_the_task_of_the_generator_rules_and_its_system_prompt_reaches_every_row(tmp_path: Path, ctx: Context):
    task = Task(description="d", system_prompt="Be kind.")
    own = Conversation(messages=[Message(role="system", content="Own."), *row("third thing").messages])
    _, train, test, _ = run(
        tmp_path, ctx, [row("first"), row("second", split="test")], [own], Task(description="d"), task
    )
    assert [each.messages[0].content for each in (*train, *test)] == ["Be kind.", "Own.", "Be kind."]
    assert read_records(tmp_path / "curated/task.json", Task) == [task]


def test_replies_that_break_the_schema_are_excluded_unless_switched_off(tmp_path: Path, ctx: Context):
    task = Task(output_schema={"type": "object", "required": ["a"]})
    given = [row("good", '{"a": 1}'), row("bad", "{}", source="a:2"), row("worse", "text")]
    _, train, _, excluded = run(tmp_path, ctx, given, task=task)
    assert len(train) == 1
    assert excluded[0].detail == "$: 'a' is a required property"
    _, train, _, _ = run(tmp_path, ctx, given, task=task, check_schema=False)
    assert len(train) == 3


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, ctx: Context):
    given = [row(f"w{n} v{n} u{n}") for n in range(30)]
    digests = []
    for _ in range(2):
        run(tmp_path, ctx, given, test_fraction=0.2)
        digests.append({path.name: digest_file(path) for path in (tmp_path / "curated").iterdir()})
    assert digests[0] == digests[1]
    assert set(digests[0]) == {"train.jsonl", "test.jsonl", "excluded.jsonl", "task.json"}


EMPTY: list[tuple[str, list[Conversation], dict[str, Any], str, str]] = [
    ("no rows", [], {}, "recipe.ingest.files: there are no rows", "name files"),
    ("no replies", [row("a", None), row("b", None)], {}, "recipe.curate: no training row is left of 2 rows (0 are test rows; excluded: no_reply 2)", "every row needs a reply"),
    ("too short", [row("a"), row("b")], {"min_prompt_words": 3}, "excluded: prompt_length 2", "curate.min_prompt_words"),
    ("too long", [row("a", "b c")], {"max_reply_words": 1}, "excluded: reply_length 1", "max_reply_words"),
    ("all listed", [row("a b")], {"blacklist": ["b"]}, "excluded: blacklist 1", "shorten curate.blacklist"),
    ("all near the test rows", [row(LONG), row(LONG + " now", split="test")], {}, "(1 are test rows; excluded: rouge_l_test 1)", "max_similarity: 1"),
    ("all test rows", [row("a", split="test")], {}, "excluded: none", "every row is a test row"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "fields", "message", "hint"), [each[1:] for each in EMPTY], ids=[each[0] for each in EMPTY]
)
def test_an_empty_training_set_says_why(
    tmp_path: Path, ctx: Context, given: list[Conversation], fields: dict[str, Any], message: str, hint: str
):
    with pytest.raises(DataError) as caught:
        run(tmp_path, ctx, given, **fields)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def ingested(tmp_path: Path, ctx: Context, path: Path, **fields: Any) -> Artifact:
    out = tmp_path / "ingest"
    ingest.run(Ingest.model_validate({"files": path.name, **fields}), Inputs({}, {path.name: path}), out, ctx)
    rows = read_records(out / "conversations.jsonl", Conversation)
    return artifact(out, rows, Task())


def test_lamini_keeps_the_first_row_of_each_question(tmp_path: Path, ctx: Context, shared_data: Path):
    path = shared_data / "lamini/lamini_dataset.jsonl"
    exact = {json.loads(line)["question"] for line in path.read_text().splitlines()}
    given = {"ingest": ingested(tmp_path, ctx, path)}
    outcome, train, _, _ = run_on(tmp_path, ctx, given, max_similarity=1, max_prompt_words=10_000)
    counts = outcome.counts
    # 170 rows without a question went at ingest; the exact rule of the set's authors removes 1,735 of 5,838.
    assert len(exact) == 4103 and counts["rows_in"] == 5838 - 170
    removed = counts["excluded_duplicate"] + counts["excluded_conflicting_reply"]
    assert len(train) == 5668 - removed
    assert (counts["excluded_duplicate"], counts["excluded_conflicting_reply"]) == (990, 604)  # 28 more: case, spacing


def test_novelty_keeps_173_of_the_175_seed_tasks_when_inputs_are_left_aside(
    tmp_path: Path, ctx: Context, shared_data: Path
):
    lines = (shared_data / "alpaca/seed_tasks.jsonl").read_text().splitlines()
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(json.dumps({"instruction": json.loads(line)["instruction"], "output": "x"}) + "\n" for line in lines)
    )
    outcome, _, _, excluded = run_on(tmp_path, ctx, {"ingest": ingested(tmp_path, ctx, bare)})
    assert outcome.counts["train"] == 173
    assert sorted(each.where for each in excluded) == ["bare.jsonl:114", "bare.jsonl:75"]
