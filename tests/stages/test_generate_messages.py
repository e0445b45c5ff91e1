"""What the generate stage says of teachers, and what it leaves of rounds and talks in its ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_generate import Recorder, generate, ingest_of, section

from tunesmith.data.filters.sources import classes
from tunesmith.errors import TeacherError
from tunesmith.events import Note
from tunesmith.recipe import TeacherSection
from tunesmith.recipe.filters import ClassesOptions, SourceClass
from tunesmith.stages.generate import _what_to_do
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Task


def script_of(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Path]:
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"s.jsonl": path}


def test_a_script_that_is_of_no_use_is_called_by_its_name_and_not_by_a_model(tmp_path: Path) -> None:
    files = script_of(tmp_path, [{"match": ".", "text": '{"input": "...", "output": "..."}'}])
    options = section(script="s.jsonl", max_requests=3)
    with pytest.raises(TeacherError, match="gave no row that could be kept") as caught:
        generate(tmp_path / "out", options, ingest=ingest_of(tmp_path / "i"), files=files)
    assert caught.value.hint is not None
    assert "the script 's.jsonl'" in caught.value.hint
    assert "gpt" not in caught.value.hint


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (TeacherSection(model="m-1"), ("the teacher 'm-1'", "a stronger one")),
        (TeacherSection(kind="local", model="smollm2-135m"), ("the teacher 'smollm2-135m'", "tunesmith models")),
        (TeacherSection(kind="scripted", script="a.jsonl"), ("the script 'a.jsonl'", "write lines")),
    ],
)
def test_what_helps_depends_on_who_answered(teacher: TeacherSection, said: tuple[str, str]) -> None:
    for part in said:
        assert part in _what_to_do(teacher)


def test_commercial_use_by_an_unchecked_entry_is_a_warning_and_the_manifest_says_so(tmp_path: Path) -> None:
    lines = [{"match": ".", "text": '{"input": "Where do larks nest in May?", "output": "On the ground."}'}]
    rows = [
        Conversation.model_validate({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                                     "split": "train", "licence": "cc0-1.0"})
    ]  # fmt: skip
    options = section(
        script="s.jsonl", num_rows=1, rows_per_request=1, require_commercial_use=True, outputs_licence="cc-by-4.0"
    )
    events = Recorder()
    outcome = generate(
        tmp_path / "out",
        options,
        ingest=ingest_of(tmp_path / "i", rows=rows),
        files=script_of(tmp_path, lines),
        events=events,
    )
    warnings = [event.message for event in events.events if isinstance(event, Note) and event.level == "warning"]
    assert any("not checked" in message for message in warnings)
    assert outcome.facts["teacher_terms"][0]["checked"] is False


def test_every_answer_of_every_round_is_in_the_ledger_and_the_classes_tell_rows_from_examples(tmp_path: Path) -> None:
    lines = [
        {"match": "An instruction:.*oil", "text": "5"},
        {"match": "An instruction:\nfirst.*brakes", "text": "2"},
        {"match": "An instruction:\nsecond.*brakes", "text": "5"},
        {"match": "Instruction:.*brakes", "text": "second: how are brakes bled?"},
        {"match": "brakes", "text": "first: brakes?"},
        {"match": "oil", "text": "How often is a chain oiled?"},
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Put oil on it weekly."}\n{"text": "Bleed the brakes from the calliper."}\n')
    options = section(
        script="s.jsonl", generator="back_translate", files=["texts.jsonl"], num_rows=9, min_score=5, score_rounds=3,
        augmented_system_prompt="Answer with what the web knows.",
    )  # fmt: skip
    ingest = ingest_of(tmp_path / "i", Task(system_prompt="Answer as an assistant."))
    files = {**script_of(tmp_path, lines), "texts.jsonl": texts}
    outcome = generate(tmp_path / "out", options, ingest=ingest, files=files)
    assert outcome.counts == {"requests": 6, "failed": 0, "rows_parsed": 3, "kept": 2, "rejected_low_score": 1}
    answers = [orjson.loads(line) for line in (tmp_path / "out/answers.jsonl").read_bytes().splitlines()]
    assert sum(entry["event"] == "answer" for entry in answers) == 6
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    assert [row.metadata["score_round"] for row in kept] == [1, 2]
    assert {row.messages[0].content for row in kept} == {"Answer with what the web knows."}
    again = generate(tmp_path / "out", options, ingest=ingest, files=files)
    assert again == outcome

    of = ClassesOptions(
        classes=(SourceClass(name="augmented", match=("back_translate:*",)), SourceClass(name="seed", match=("*",)))
    )
    judge = classes(of, None)  # pyright: ignore[reportArgumentType]
    seeds = read_records(ingest.file("conversations.jsonl"), Conversation)
    named = [judge(row) for row in (kept[0], seeds[0])]
    assert [row.metadata["source_class"] for row in named if isinstance(row, Conversation)] == ["augmented", "seed"]


def test_a_list_of_a_tree_is_paid_once_however_many_talks_hang_on_it(tmp_path: Path) -> None:
    talk = "User: hello {0}\nAssistant: good {0}\nUser: more {0}\nAssistant: done {0}"
    lines = [
        {"match": "2 areas", "text": "1. brakes\n2. brakes"},
        {"match": "2 subtopics", "text": "1. pads\n2. cables"},
        {"match": "Subtopic: pads", "text": "1. When are pads worn?\n2. Why do they squeal?"},
        {"match": "Subtopic: cables", "text": "1. Who oils cables?\n2. What if one snaps?"},
        *(
            {"match": f"from this:\nW.*{word}", "text": talk.format(word)}
            for word in ("worn", "squeal", "oils", "snaps")
        ),
    ]
    options = section(
        script="s.jsonl", generator="dialogue", dialogue_topics="tree", rows_per_request=2, num_rows=4, max_rounds=2
    )
    ingest = ingest_of(tmp_path / "i", Task(description="Answer cyclists."), rows=[])
    outcome = generate(tmp_path / "out", options, ingest=ingest, files=script_of(tmp_path, lines))
    assert outcome.counts == {"requests": 8, "failed": 0, "rows_parsed": 5, "kept": 4, "rejected_duplicate": 1}
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    assert [row.metadata["subtopic"] for row in kept] == ["pads", "pads", "cables", "cables"]
