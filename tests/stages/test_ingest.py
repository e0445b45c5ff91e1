"""ingest: rows in, conversations, rejects and a task out; test rows set apart; counts that add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.hashing import digest_file
from tunesmith.protocols import Context
from tunesmith.recipe import Ingest
from tunesmith.stages import ingest
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Document, Excluded, Inputs, Labelled, Outcome, Preference, Task


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, ctx: Context, **fields: Any) -> tuple[Outcome, list[Conversation], list[Excluded], Task]:
    section = Ingest.model_validate(fields)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    outcome = ingest.run(section, Inputs({}, {name: tmp_path / name for name in section.file_names()}), out, ctx)
    rows = read_records(out / "conversations.jsonl", Conversation)
    rejects = read_records(out / "rejects.jsonl", Excluded)
    assert outcome.counts["rows_read"] == outcome.counts["kept"] + outcome.counts["rejected"]
    assert outcome.counts["kept"] == outcome.counts["train"] + outcome.counts["test"] == len(rows)
    assert outcome.counts["rejected"] == len(rejects)
    assert outcome.facts == {"num_train": outcome.counts["train"], "num_test": outcome.counts["test"]}
    return outcome, rows, rejects, read_records(out / "task.json", Task)[0]


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"question": f"Question {n}?", "answer": f"Answer {n}."} for n in numbers]


def test_files_test_files_system_prompt_and_schema_come_together(tmp_path: Path, ctx: Context, sink: Any):
    jsonl(tmp_path / "a.jsonl", *pairs(1, 2), {"question": "", "answer": "x"})
    jsonl(tmp_path / "t.jsonl", *pairs(3))
    (tmp_path / "s.json").write_text('{"type": "object"}')
    outcome, rows, rejects, task = run(
        tmp_path, ctx, files=["a.jsonl"], test_files=["t.jsonl"], system_prompt="Be brief.", task="Answer.",
        output_schema="s.json", licence="MIT",
    )  # fmt: skip
    assert outcome.kind == "conversations"
    assert [(row.source, row.split, row.licence) for row in rows] == [
        ("a.jsonl:1", None, "MIT"), ("a.jsonl:2", None, "MIT"), ("t.jsonl:1", "test", "MIT"),
    ]  # fmt: skip
    assert all(row.messages[0].content == "Be brief." for row in rows)
    assert [(reject.where, reject.reason) for reject in rejects] == [("a.jsonl:3", "empty_prompt")]
    assert task == Task(description="Answer.", system_prompt="Be brief.", output_schema={"type": "object"})
    notes = [event.message for event in sink.events if event.type == "note"]
    assert notes == [
        "1 of 4 rows cannot be used (empty_prompt 1); the first is a.jsonl:3: field 'question' is empty, expected text. "
        "All are in rejects.jsonl"
    ]
    assert [event.done for event in sink.events if event.type == "progress"][-1] == 4


def test_the_same_files_give_the_same_bytes(tmp_path: Path, ctx: Context):
    jsonl(tmp_path / "a.jsonl", *pairs(*range(20)))
    digests = []
    for _ in range(2):
        run(tmp_path, ctx, files=["a.jsonl"], test_fraction=0.3)
        digests.append([digest_file(path) for path in sorted((tmp_path / "out").iterdir())])
    assert digests[0] == digests[1]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "conversations.jsonl",
        "rejects.jsonl",
        "task.json",
    ]


def test_a_fraction_is_held_out_by_origin_and_rows_marked_in_the_file_stay_so(tmp_path: Path, ctx: Context):
    marked = [{**row, "split": split} for row, split in zip(pairs(90, 91), ("train", "test"), strict=True)]
    grouped = [{**row, "group": f"g{n // 2}"} for n, row in enumerate(pairs(*range(20)))]
    jsonl(tmp_path / "a.jsonl", *marked, *grouped)
    outcome, rows, _, _ = run(tmp_path, ctx, files="a.jsonl", test_fraction=0.3)
    assert outcome.counts["test"] == 1 + 6
    assert [row.split for row in rows[:2]] == ["train", "test"]
    assert all(a.split == b.split for a, b in zip(rows[2::2], rows[3::2], strict=True))


def test_equal_prompts_are_one_origin_so_a_split_never_parts_them(tmp_path: Path, ctx: Context):
    rows = [{"question": q, "answer": a} for q in "abcdefgh" for a in "12"]
    jsonl(tmp_path / "a.jsonl", *rows)
    for rng_seed in range(5):
        _, kept, rejects, _ = run(tmp_path, ctx, files="a.jsonl", test_fraction=0.5, rng_seed=rng_seed)
        assert len(kept) == 16 and rejects == []
        assert len({(row.messages[0].content, row.split) for row in kept}) == 8


def test_instances_of_one_seed_task_stay_on_one_side(tmp_path: Path, ctx: Context):
    tasks = [
        {"instruction": f"Task {n}", "instances": [{"input": str(k), "output": "o"} for k in range(3)]}
        for n in range(8)
    ]
    jsonl(tmp_path / "a.jsonl", *tasks)
    _, kept, _, _ = run(tmp_path, ctx, files="a.jsonl", test_fraction=0.5, system_prompt="s")
    sides = {(row.source, row.split) for row in kept}
    assert len(kept) == 24 and len(sides) == 8
    assert len({row.origin for row in kept}) == 8


def test_a_row_that_is_also_a_test_row_is_taken_from_training(tmp_path: Path, ctx: Context):
    jsonl(
        tmp_path / "a.jsonl",
        *pairs(1, 2),
        {"question": "question  2?", "answer": "other"},
        {**pairs(3)[0], "origin": "x"},
    )
    jsonl(tmp_path / "t.jsonl", *pairs(2), {**pairs(4)[0], "origin": "x"})
    _, rows, rejects, _ = run(tmp_path, ctx, files="a.jsonl", test_files="t.jsonl")
    assert [(row.source, row.split) for row in rows] == [
        ("a.jsonl:1", None),
        ("t.jsonl:1", "test"),
        ("t.jsonl:2", "test"),
    ]
    assert [(each.where, each.reason, each.detail) for each in rejects] == [
        ("a.jsonl:2", "in_test", "the prompt is that of the test row t.jsonl:1"),
        ("a.jsonl:3", "in_test", "the prompt is that of the test row t.jsonl:1"),
        ("a.jsonl:4", "in_test", "its origin 'x' also has test rows"),
    ]
    assert rejects[0].conversation is not None


def test_without_files_there_is_a_task_alone(tmp_path: Path, ctx: Context):
    outcome, rows, _, task = run(tmp_path, ctx, task="Write haiku.")
    assert outcome.counts == {"rows_read": 0, "kept": 0, "rejected": 0, "train": 0, "test": 0}
    assert (rows, task.description) == ([], "Write haiku.")


def test_prompts_alone_are_kept_and_said_so(tmp_path: Path, ctx: Context, sink: Any):
    jsonl(tmp_path / "a.jsonl", *[{"prompt": f"p{n}", "gold": "a"} for n in range(3)])
    _, rows, _, _ = run(tmp_path, ctx, files="a.jsonl")
    assert [row.reply for row in rows] == [None] * 3
    (note,) = [event.message for event in sink.events if event.type == "note"]
    assert note.startswith("3 rows are prompts without a reply (other fields there: gold): the first is a.jsonl:1.")


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("all rows bad", {"files": "bad.jsonl"}, "recipe.ingest.files: no row of bad.jsonl can be learnt from. The first reasons: bad.jsonl:1: field 'answer' is empty, expected text; bad.jsonl:2: ", "reasons in all: empty_reply 4"),
    ("all rows held out", {"files": "test.jsonl"}, "recipe.ingest.files: every example is marked as a test row", "leave some rows"),
    ("the same rows twice", {"files": "good.jsonl", "test_files": "copy.jsonl"}, "good.jsonl:1: the prompt is that of the test row copy.jsonl:1", "in_test 2"),
    ("the same file twice", {"files": "good.jsonl", "test_files": "good.jsonl"}, "recipe.ingest.test_files: good.jsonl is named as examples and as held-out examples", "name it once"),
    ("a wrong inline schema", {"files": "good.jsonl", "output_schema": {"type": "objekt"}}, "recipe.ingest.output_schema: not a valid JSON Schema at type", "json-schema.org"),
    ("a schema file that is none", {"files": "good.jsonl", "output_schema": "good.jsonl"}, "good.jsonl: the schema is not valid JSON", ""),
    ("a file of no known form", {"files": "odd.jsonl"}, "odd.jsonl:1: no known form of example has the fields: x", "known forms"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message", "hint"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_cannot_be_learnt_from_is_one_clear_error(
    tmp_path: Path, ctx: Context, fields: dict[str, Any], message: str, hint: str
):
    jsonl(tmp_path / "good.jsonl", *pairs(1, 2))
    jsonl(tmp_path / "copy.jsonl", *pairs(1, 2))
    jsonl(tmp_path / "bad.jsonl", *[{"question": f"q{n}", "answer": ""} for n in range(4)])
    jsonl(tmp_path / "test.jsonl", *[{**row, "split": "test"} for row in pairs(1, 2)])
    jsonl(tmp_path / "odd.jsonl", {"x": 1})
    with pytest.raises(DataError) as caught:
        run(tmp_path, ctx, **fields)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_a_sampled_file_gives_so_many_examples_and_counts_the_rest(tmp_path: Path, ctx: Context, sink: Any):
    jsonl(tmp_path / "a.jsonl", *pairs(*range(50)), {"question": "", "answer": "x"})
    section = Ingest.model_validate({"files": ["a.jsonl#10", "a.jsonl#70"]})
    assert section.file_names() == ["a.jsonl"]
    out = tmp_path / "out"
    out.mkdir()
    outcome = ingest.run(section, Inputs({}, {"a.jsonl": tmp_path / "a.jsonl"}), out, ctx)
    assert outcome.counts == {
        "rows_read": 102, "kept": 60, "rejected": 2, "train": 60, "test": 0, "not_drawn": 40,
    }  # fmt: skip
    notes = [event.message for event in sink.events if event.type == "note"]
    assert notes[0] == "a.jsonl#70 asks for 70 examples, and the file has 50: all are taken"


def test_preferences_labels_and_documents_have_files_of_their_own(tmp_path: Path, ctx: Context):
    jsonl(tmp_path / "a.jsonl", *pairs(1))
    jsonl(tmp_path / "p.jsonl", *[{"prompt": f"p{n}", "chosen": "c", "rejected": "r"} for n in range(4)])
    jsonl(tmp_path / "k.jsonl", {"prompt": "question  1?", "completion": "c", "label": True})
    (tmp_path / "d.txt").write_text("Once upon a time.")
    section = Ingest.model_validate(
        {"files": ["a.jsonl", "p.jsonl", "k.jsonl", "d.txt"], "licence": "MIT", "test_fraction": 0.5}
    )
    out = tmp_path / "out"
    out.mkdir()
    outcome = ingest.run(section, Inputs({}, {name: tmp_path / name for name in section.files}), out, ctx)
    counts = outcome.counts
    assert (counts["rows_read"], counts["preferences"], counts["labelled"], counts["documents"]) == (7, 4, 1, 1)
    preferences = read_records(out / "preferences.jsonl", Preference)
    labelled = read_records(out / "labelled.jsonl", Labelled)
    documents = read_records(out / "documents.jsonl", Document)
    rows = read_records(out / "conversations.jsonl", Conversation)
    assert [row.chosen for row in preferences] == ["c"] * 4 and documents[0].text == "Once upon a time."
    assert (labelled[0].origin, labelled[0].split) == (rows[0].origin, rows[0].split)  # the same prompt
    everything = [*preferences, *labelled, *documents, *rows]
    assert {row.licence for row in everything} == {"MIT"}
    assert sum(row.split == "test" for row in everything) in (3, 4)
    assert sorted(path.name for path in out.iterdir()) == [
        "conversations.jsonl", "documents.jsonl", "labelled.jsonl", "preferences.jsonl", "rejects.jsonl", "task.json",
    ]  # fmt: skip


def test_rows_that_name_another_rows_id_as_origin_follow_it(tmp_path: Path, ctx: Context):
    _, (seed,), _, _ = run(tmp_path, ctx, files=[jsonl(tmp_path / "a.jsonl", *pairs(1)).name])
    first = Conversation(messages=seed.messages)
    copies = [{**pairs(n)[0], "origin": first.id} for n in (5, 6)]
    jsonl(tmp_path / "a.jsonl", *copies, *pairs(1))
    _, rows, _, _ = run(tmp_path, ctx, files="a.jsonl")
    assert len({row.origin for row in rows}) == 1


def test_the_form_of_a_file_can_be_named(tmp_path: Path, ctx: Context):
    talk = {"instruction": "Write a dialogue.", "output": "Tom: Hi!\nAnn: Hello."}
    jsonl(tmp_path / "a.jsonl", talk)
    with pytest.raises(DataError, match="two ways"):
        run(tmp_path, ctx, files="a.jsonl")
    _, (row,), _, _ = run(tmp_path, ctx, files="a.jsonl", format="alpaca_plain")
    assert row.reply == talk["output"]


def test_a_failed_ingest_leaves_no_scratch_file(tmp_path: Path, ctx: Context):
    jsonl(tmp_path / "a.jsonl", *[{**pair, "split": "test"} for pair in pairs(1, 2)])
    with pytest.raises(DataError, match="every example is marked as a test row"):
        run(tmp_path, ctx, files=["a.jsonl"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_row_that_could_not_be_read_again_is_rejected(tmp_path: Path, ctx: Context):
    def nested(depth: int) -> Any:
        return [nested(depth - 1)] if depth else 1

    deep = [
        {**pair, "extra": nested(depth)} for pair, depth in zip(pairs(1, 2, 3, 4), (100, 160, 230, 600), strict=True)
    ]
    jsonl(tmp_path / "a.jsonl", *deep)
    _, rows, rejects, _ = run(tmp_path, ctx, files=["a.jsonl"])
    assert [row.source for row in rows] == ["a.jsonl:1", "a.jsonl:2"]
    assert [(each.where, each.reason) for each in rejects] == [("a.jsonl:3", "wrong_type"), ("a.jsonl:4", "wrong_type")]
    assert isinstance(rejects[0].raw, str)


def test_an_empty_file_of_a_folder_is_counted_and_named(tmp_path: Path, ctx: Context, sink: Any):
    folder = tmp_path / "rows"
    folder.mkdir()
    jsonl(folder / "a.jsonl", *pairs(1, 2))
    (folder / "b.jsonl").touch()
    (folder / "c.json").write_text("[]")
    outcome, rows, rejects, _ = run(tmp_path, ctx, files=["rows"])
    assert (outcome.counts["rows_read"], outcome.counts["rejected"], len(rows)) == (4, 2, 2)
    assert [(each.where, each.reason) for each in rejects] == [("b.jsonl", "empty_file"), ("c.json", "empty_file")]
    warnings = [event.message for event in sink.events if event.type == "note" and event.level == "warning"]
    assert "2 files are empty: b.jsonl, c.json; each counts as one rejected row" in warnings


def test_an_empty_file_that_was_named_is_an_error(tmp_path: Path, ctx: Context):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"a\.jsonl: the file is empty") as caught:
        run(tmp_path, ctx, files=["a.jsonl"])
    assert caught.value.hint
