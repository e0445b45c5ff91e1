"""The embedded small model writes both sides of a talk: the person's turns from its template's bare header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from test_generate import ingest_of

from tunesmith.protocols import Context
from tunesmith.recipe import Generate, Runtime, TeacherSection
from tunesmith.stages.generate import run
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Inputs, Task

SHORT = "You answer in one short sentence."


@pytest.mark.real
def test_the_embedded_model_writes_a_talk_of_two_exchanges(tmp_path: Path, sink: Any) -> None:
    section = Generate(
        generator="magpie",
        teacher=TeacherSection(kind="local", model="smollm2-135m", context_length=1024),
        num_rows=1,
        turns=2,
        temperature=0.7,
        max_tokens=96,
        max_requests=24,
        rng_seed=3,
    )
    out = tmp_path / "generate"
    out.mkdir()
    ingest = ingest_of(tmp_path / "ingest", Task(system_prompt=SHORT), rows=[])
    run(section, Inputs({"ingest": ingest}, {}), out, Context(events=sink, runtime=Runtime(teacher_concurrency=1)))
    (row,) = read_records(out / "conversations.jsonl", Conversation)
    assert row.messages[0].content == SHORT
    assert row.metadata["num_exchanges"] == len(row.messages) // 2
    assert not any("<|im" in turn.content for turn in row.messages)
    entries = [orjson.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]
    headers = [entry["request"] for entry in entries if entry.get("request", {}).get("prefix_only")]
    later = [one for one in headers if len(one["messages"]) > 1]
    assert [turn["role"] for turn in later[0]["messages"]] == ["system", "user", "assistant"]
    assert later[0]["messages"][0]["content"].startswith(SHORT)
    assert len(later[0]["messages"][0]["content"]) > len(SHORT)
