"""curate: every row ends as train, test or excluded with a reason, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from made_artifact import artifact
from tunesmith.data.review import Decision
from tunesmith.errors import DataError, TeacherError
from tunesmith.hashing import digest_file
from tunesmith.protocols import Context
from tunesmith.recipe import Curate, Ingest
from tunesmith.stages import curate, ingest
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Artifact, Conversation, Excluded, Inputs, Message, Outcome, Split, Task


def conversations(path: Path, rows: list[Conversation], task: Task) -> Artifact:
    write_records(path / "conversations.jsonl", rows)
    write_records(path / "task.json", [task])
    return artifact(path, "conversations", stage=path.name)


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
    artifacts = {"ingest": conversations(tmp_path / "ingest", given, task or Task())}
    if generated is not None:
        artifacts["generate"] = conversations(tmp_path / "generate", generated, generated_task or task or Task())
    return run_on(tmp_path, ctx, artifacts, **fields)


def run_on(tmp_path: Path, ctx: Context, artifacts: dict[str, Artifact], **fields: Any) -> Result:
    out = tmp_path / "curated"
    outcome = curate.run(Curate.model_validate(fields), Inputs(artifacts, {}), out, ctx)
    train = read_records(out / "train.jsonl", Conversation)
    test = read_records(out / "test.jsonl", Conversation)
    excluded = read_records(out / "excluded.jsonl", Excluded)
    counts = dict(outcome.counts)
    assert counts.pop("rows_in") == sum(counts.values()) == len(train) + len(test) + len(excluded)
    assert outcome.facts.items() >= {"num_train": len(train), "num_test": len(test)}.items()
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
    return conversations(out, rows, Task())


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


EVAL_QUESTION = (
    "a farmer has seventeen sheep and buys nine more at the market on friday morning how many sheep does he own then"
)


def test_listed_filters_run_in_order_rewrite_rows_and_the_counts_add_up(tmp_path: Path, ctx: Context):
    given = [
        row("Write to ann@example.org about the tyre", source="a:1"),
        row("Write to bob@example.org about the tyre", source="a:2"),
        row("What is the price of it", "I'm sorry, but I can't help with that.", source="a:3"),
        row("Is 5 more than 3 or not", "5 + 3 = 9", source="a:4"),
        row("When do you open tomorrow then", source="t:1", split="test"),
    ]
    outcome, train, test, excluded = run(tmp_path, ctx, given, filters=["refusal", {"pii": "mask"}, "lint"])
    assert [(each.messages[0].content, each.metadata) for each in train] == [
        ("Write to [EMAIL] about the tyre", {"pii": {"email": 1}})
    ]
    assert len(test) == 1
    # a:2 repeats a:1 once both are masked: repetitions are looked for after the listed filters
    assert {each.where: each.reason for each in excluded} == {
        "a:2": "duplicate", "a:3": "refusal", "a:4": "wrong_arithmetic",
    }  # fmt: skip
    assert outcome.facts == {"num_train": 1, "num_test": 1, "num_rewritten": 2}


def test_training_rows_that_hold_a_test_question_or_an_evaluation_question_go(tmp_path: Path, ctx: Context):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": EVAL_QUESTION, "answer": "26"}) + "\n")
    test_question = "please explain to a small child why the sky over the sea is blue in the day and black at night"
    given = [
        row("Solve it.", f"Here is one: {EVAL_QUESTION}? He owns 26.", source="a:1"),
        row("Give me a good question", f"Sure: {test_question}", source="a:2"),
        row("What do sheep eat all day", "Grass, mostly.", source="a:3"),
        row(test_question, "Because.", split="test", source="t:1"),
    ]
    artifacts = {"ingest": conversations(tmp_path / "ingest", given, Task())}
    section = Curate(decontaminate_against=("exam.jsonl",))
    assert section.file_names() == ["exam.jsonl"]
    curate.run(section, Inputs(artifacts, {"exam.jsonl": exam}), tmp_path / "curated", ctx)
    excluded = {each.where: each for each in read_records(tmp_path / "curated/excluded.jsonl", Excluded)}
    assert {where: each.reason for where, each in excluded.items()} == {
        "a:1": "contaminated", "a:2": "contaminated_test",
    }  # fmt: skip
    assert excluded["a:1"].detail.startswith("holds 100% of the question exam.jsonl:1: 'a farmer has seventeen sheep")
    assert excluded["a:2"].detail.startswith("holds 100% of the question t:1: 'please explain")
    _, train, _, _ = run(tmp_path, ctx, given, max_eval_coverage=1)
    assert len(train) == 3


def test_rows_that_share_an_instruction_with_a_test_row_go_with_a_word_on_the_key(
    tmp_path: Path, ctx: Context, sink: Any
) -> None:
    told = "Say in one word of which kind the thing is that stands below this line, and nothing else"
    test = row(f"{told}\n\ntulip", "flower", split="test", source="t:1")
    given = [row(f"{told}\n\n{what}", kind) for what, kind in (("oak", "tree"), ("trout", "fish"), ("ant", "insect"))]
    whole = row("Which question was it?", f"It was: {told}\n\ntulip")
    outcome, _, _, _ = run(tmp_path / "a", ctx, [*given, whole, row(LONG), test], max_similarity=1)
    assert outcome.counts["excluded_contaminated_test"] == 4
    (said,) = [each.message for each in sink.events if "curate.max_eval_coverage" in getattr(each, "message", "")]
    assert said.startswith("3 rows are left out") and said.endswith("set curate.max_eval_coverage: 1")
    sink.events.clear()
    run(tmp_path / "b", ctx, [whole, row(LONG), test], max_similarity=1)
    assert not any("max_eval_coverage" in getattr(each, "message", "") for each in sink.events)


def test_the_place_of_a_generated_row_names_the_request_that_made_it(tmp_path: Path, ctx: Context):
    said = row("Say it once", "Once.", source="self_instruct:scripted:s.jsonl")
    made = [said.model_copy(update={"metadata": {"request": number}}) for number in (4, 7)]
    run(tmp_path, ctx, made)
    (excluded,) = read_records(tmp_path / "curated/excluded.jsonl", Excluded)
    assert excluded.where == "self_instruct:scripted:s.jsonl, request 7"
    assert excluded.detail == "the same as self_instruct:scripted:s.jsonl, request 4"


def test_an_evaluation_question_without_an_answer_is_protected_too(tmp_path: Path, ctx: Context):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": "what is it", "answer": "that"}) + "\n")
    with exam.open("a") as stream:
        stream.write(json.dumps({"question": EVAL_QUESTION, "answer": ""}) + "\n")
    artifacts = {
        "ingest": conversations(tmp_path / "ingest", [row("Solve it.", f"One: {EVAL_QUESTION}"), row(LONG)], Task())
    }
    section = Curate(decontaminate_against=("exam.jsonl",))
    outcome = curate.run(section, Inputs(artifacts, {"exam.jsonl": exam}), tmp_path / "curated", ctx)
    assert outcome.counts == {"rows_in": 2, "train": 1, "test": 0, "excluded_contaminated": 1}


def test_rows_in_which_a_filter_changed_what_is_said_are_counted(tmp_path: Path, ctx: Context, sink: Any):
    given = [row("write to me", "At ann@example.com please."), row("what time is it now", "Noon.")]
    outcome, train, _, _ = run(tmp_path, ctx, given, filters=[{"name": "pii", "action": "mask"}])
    assert outcome.facts["num_rewritten"] == 1
    assert "ann@" not in (train[0].reply or "")
    assert any("changed what is said in 1 rows" in getattr(event, "message", "") for event in sink.events)


def test_a_fixed_instruction_is_a_phrase_of_the_task_and_no_leak(tmp_path: Path, ctx: Context):
    fixed = "read the message of the customer below with care and then say in one word what it is that they want"
    words = [f"{a}{n}" for n in range(13) for a in ("apple", "brick", "cloud", "delta")]
    given = [
        row(f"{fixed}: " + " ".join(f"{w}{n}{k}" for k, w in enumerate(words)), source=f"a:{n}") for n in range(12)
    ]
    given.append(row(f"{fixed}: " + " ".join(f"{w}x" for w in words), split="test"))
    _, train, _, excluded = run(tmp_path, ctx, given)
    assert (len(train), excluded) == (12, [])


def scripted(tmp_path: Path, *texts: str, **fields: Any) -> dict[str, Any]:
    script = tmp_path / "judge.jsonl"
    script.write_text("".join(text + "\n" for text in texts))
    return {"teacher": {"kind": "scripted", "script": str(script)}, **fields}


def test_a_judge_scores_training_rows_once_and_its_answers_are_kept(tmp_path: Path, ctx: Context):
    given = [row("about apples", source="a:1"), row("about bricks", source="a:2"), row("held out", split="test")]
    judge = scripted(tmp_path, '{"match": "apples", "text": "5\\nGood."}', '{"match": "bricks", "text": "2\\nBad."}')
    artifacts = {"ingest": conversations(tmp_path / "ingest", given, Task())}
    outcomes = []
    for _ in range(2):  # the second run finds every answer on file
        section = Curate.model_validate({**judge, "filters": ["alpagasus"]})
        outcomes.append(curate.run(section, Inputs(artifacts, {}), tmp_path / "curated", ctx))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].facts == {
        "num_train": 1, "num_test": 1, "judge": "scripted:judge.jsonl", "num_requests": 2, "num_failed": 0, "cost_usd": 0.0,
    }  # fmt: skip
    (train,) = read_records(tmp_path / "curated/train.jsonl", Conversation)
    assert train.metadata["scores"] == {"alpagasus_accuracy": 5.0}
    (excluded,) = read_records(tmp_path / "curated/excluded.jsonl", Excluded)
    assert (excluded.where, excluded.detail) == ("a:2", "accuracy 2, wanted is 4.5")


def test_too_many_failures_of_the_judge_stop_the_stage(tmp_path: Path, ctx: Context):
    given = [row(f"thing {word}") for word in ("apple", "brick", "cloud")]
    judge = scripted(tmp_path, '{"match": "thing", "error": "HTTP 500"}')
    with pytest.raises(TeacherError, match="3 answers of the judge failed, allowed are 2; the last: HTTP 500"):
        run(tmp_path, ctx, given, **judge, filters=["alpagasus"], max_failures=2, max_similarity=1)
    _, _, _, excluded = run(
        tmp_path, ctx, [*given, row("other matter")], **scripted(tmp_path, '{"match": "thing", "error": "HTTP 500"}', '{"match": "other", "text": "5"}'),
        filters=["alpagasus"], max_similarity=1,
    )  # fmt: skip
    assert [(each.reason, each.detail) for each in excluded] == [("judge_failed", "HTTP 500")] * 3


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["lenght"], "there is no filter named 'lenght'; did you mean 'length'?"),
        (
            [{"name": "length", "min_word": 3}],
            "the filter 'length' has no option 'min_word'; did you mean 'min_words'?",
        ),
        (
            [{"pii": "maks"}],
            "option 'action' of the filter 'pii': expected 'report', 'mask' or 'exclude', found 'maks'",
        ),
        ([{"echo": 3}], "the filter 'echo' has no chief option; write {name: echo, option: value}"),
        ([["a"]], "a filter is a name, `name: value`, or {name: ..., option: ...}; found ['a']"),
        (["alpagasus"], "the filter 'alpagasus' asks a judge: add `curate.teacher`"),
    ],
)
def test_a_wrong_filter_is_named_with_what_was_meant(filters: list[Any], message: str):
    with pytest.raises(ValidationError) as caught:
        Curate.model_validate({"filters": filters})
    assert message in str(caught.value)


def test_the_filters_of_a_recipe_come_back_from_its_resolved_form():
    written = [{"name": "length", "min_words": 3}, {"language": ["en", "zh"]}, "refusal", {"pii": "mask"}]
    section = Curate.model_validate({"filters": written})
    again = Curate.model_validate(section.model_dump(mode="json"))
    assert again == section
    assert section.model_dump(mode="json")["filters"][0]["min_words"] == 3


@pytest.mark.real
def test_a_small_model_finds_matching_replies_likelier(tmp_path: Path, ctx: Context, smollm2: Any):
    given = [
        row("What is the capital of France?", "The capital of France is Paris.", source="a:1"),
        row("How do I boil an egg?", "zxq vv blorp 77 qqq lmnop xx yy zz kk", source="a:2"),
        row("Name three colours of the rainbow.", "Red, green and blue are colours of the rainbow.", source="a:3"),
    ]
    _, train, _, excluded = run(tmp_path, ctx, given, filters=[{"name": "perplexity", "max": 1e6}, "ifd"])
    assert [each.source for each in train] == ["a:1", "a:3"]
    assert excluded[0].reason == "ifd"  # the prompt does not help to foretell letters drawn at random
    assert excluded[0].conversation is not None
    nonsense = excluded[0].conversation.metadata["scores"]["perplexity"]
    assert all(4 * each.metadata["scores"]["perplexity"] < nonsense for each in train)
    assert all(0 < each.metadata["scores"]["ifd"] < 1 for each in train)


def test_what_a_person_decided_holds_against_filters_but_not_against_test_rows(tmp_path: Path, ctx: Context, sink: Any):
    given = [
        row("tell me a joke about bicycles please", "As an AI language model I will not.", source="a:1"),
        row("what does a new chain cost today", "Ten.", source="a:2"),
        row("which oil is best for a chain", "Any.", source="a:3"),
        row(LONG + " now", "Like this.", source="a:4"),
        row("do you know which oil is best for a chain", "Olive.", source="a:5"),
        row(LONG + " today", "So.", source="t:1", split="test"),
    ]
    edited = [given[1].messages[0], Message(role="assistant", content="Twelve euros.")]
    decisions = [
        Decision(verdict="keep", id=given[0].id, messages=given[0].messages),
        Decision(verdict="edit", id=given[1].id, messages=given[1].messages, edited=edited),
        Decision(verdict="reject", id=given[2].id, messages=given[2].messages, reason="too vague"),
        Decision(verdict="keep", id=given[3].id, messages=given[3].messages),
    ]
    write_records(tmp_path / "review.jsonl", decisions)
    artifacts = {"ingest": conversations(tmp_path / "ingest", given, Task(system_prompt="Be kind."))}
    section = Curate.model_validate({"review": "review.jsonl", "filters": ["refusal"]})
    inputs = Inputs(artifacts, {"review.jsonl": tmp_path / "review.jsonl"})
    outcome = curate.run(section, inputs, tmp_path / "curated", ctx)
    train = {each.source: each.reply for each in read_records(tmp_path / "curated" / "train.jsonl", Conversation)}
    excluded = read_records(tmp_path / "curated" / "excluded.jsonl", Excluded)
    assert train == {"a:1": "As an AI language model I will not.", "a:2": "Twelve euros.", "a:5": "Olive."}
    assert {each.where: each.reason for each in excluded} == {"a:3": "reviewed", "a:4": "rouge_l_test"}
    assert outcome.counts["rows_in"] == 6
    assert any("decisions of the review: 4" in getattr(event, "message", "") for event in sink.events)
