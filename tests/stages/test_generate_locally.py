"""The embedded small model as teacher: a model of 135 M parameters writes rows of the support desk that can be kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from made_artifact import artifact
from tunesmith.protocols import Context
from tunesmith.recipe import Generate, Runtime, TeacherSection
from tunesmith.resolve import load_recipe
from tunesmith.stages.generate import run
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Artifact, Conversation, Inputs, Split, Task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "support-desk"
FILES: dict[str, Split] = {"seeds.jsonl": "train", "test.jsonl": "test"}
SEEDS_SHOWN = 3
MAX_REQUESTS = 12


def support_desk(folder: Path) -> Artifact:
    """Its ingest artifact, with the held-out rows beside the seeds as the stage finds them."""
    folder.mkdir()
    rows = [
        Conversation(messages=json.loads(line)["messages"], split=split, source=f"{name}:{number}", licence="Apache-2.0")
        for name, split in FILES.items()
        for number, line in enumerate((EXAMPLE / name).read_text(encoding="utf-8").splitlines(), 1)
    ]  # fmt: skip
    write_records(folder / "conversations.jsonl", rows)
    schema: dict[str, Any] = json.loads((EXAMPLE / "schema.json").read_text())
    task = Task(
        description="Read a message from a customer of a bicycle shop and answer in JSON.", output_schema=schema
    )
    write_records(folder / "task.json", [task])
    return artifact(folder, "conversations", stage="ingest")


def test_the_recipe_with_more_rows_trains_as_the_demo_does() -> None:
    demo, more = (
        load_recipe(EXAMPLE / name, []).recipe.model_dump(mode="json") for name in ("recipe.yaml", "recipe-more.yaml")
    )
    differing = {section for section in demo if demo[section] != more[section]}
    assert differing == {"name", "description", "ingest", "generate"}
    assert {key for key in demo["ingest"] if demo["ingest"][key] != more["ingest"][key]} == {"task"}
    assert more["generate"]["generator"] == "label_first"
    assert more["generate"]["teacher"]["kind"] == "local"


@pytest.mark.real
def test_the_embedded_model_writes_a_row_that_is_kept_within_a_few_requests(tmp_path: Path, sink: Any) -> None:
    section = Generate(
        generator="label_first",
        teacher=TeacherSection(kind="local", model="smollm2-135m", context_length=1280),
        num_rows=1,
        rows_per_request=2,
        num_seeds_shown=SEEDS_SHOWN,
        temperature=0.7,
        top_p=0.9,
        max_tokens=160,
        max_requests=MAX_REQUESTS,
    )
    ingest = support_desk(tmp_path / "ingest")
    context = Context(events=sink, runtime=Runtime(teacher_concurrency=1))
    out = tmp_path / "generate"
    out.mkdir()
    outcome = run(section, Inputs({"ingest": ingest}, {}), out, context)

    kept = read_records(out / "conversations.jsonl", Conversation)
    assert len(kept) == 1
    assert outcome.counts["requests"] <= MAX_REQUESTS
    assert outcome.counts["rows_parsed"] == outcome.counts["requests"]  # every answer ended as a row, kept or not
    answer = json.loads(kept[0].reply or "")
    assert list(answer) == ["intent", "urgency", "order", "reply"]
    held_out = [row for row in read_records(ingest.file("conversations.jsonl"), Conversation) if row.split == "test"]
    asked = (out / "answers.jsonl").read_text(encoding="utf-8")
    assert len(held_out) == 88
    assert not any(json.dumps(row.messages[0].content, ensure_ascii=False)[1:-1] in asked for row in held_out)
