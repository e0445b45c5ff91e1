"""Rows to compare answers by, apart from the test rows: what is measured afterwards must not have been seen.

`ingest` keeps equal prompts on one side of its split. Here rows meet the test rows that `curate` wrote: those it held out itself,
those that got a system prompt since, and those that hold a test row's question in other words around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tunesmith.data.filters.contamination import Contamination, questions_of
from tunesmith.data.identity import prompt_key
from tunesmith.recipe import Curate
from tunesmith.stages.tokenize import TASK
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Excluded, Inputs, Labelled, Message, Preference, Task

TEST_ROWS = "test.jsonl"

Row = TypeVar("Row", Preference, Labelled)


def apart_from_test(rows: Sequence[Row], inputs: Inputs) -> tuple[list[Row], list[Excluded]]:
    """(rows that may be learnt from, the others with the reason). in_test: the prompt is that of a test row, whatever the
    replies; contaminated_test: more of a test row's question than `curate.max_eval_coverage` stands in prompt and replies."""
    curated = inputs["curate"]
    test = read_records(curated.file(TEST_ROWS), Conversation)
    if not test or not rows:
        return list(rows), []
    system_prompt = read_records(curated.file(TASK), Task)[0].system_prompt
    place_of = {_key(row.prompt, system_prompt): row.place for row in test}
    coverage = Curate.model_validate(curated.manifest.section).max_eval_coverage
    contamination = Contamination(questions_of(test, are_test_rows=True), max_coverage=coverage, num_threads=1)
    verdicts = contamination.judge_all([_as_conversation(row) for row in rows])
    kept: list[Row] = []
    excluded: list[Excluded] = []
    for row, verdict in zip(rows, verdicts, strict=True):
        place = place_of.get(_key(row.prompt, system_prompt))
        if place is not None:
            verdict = "in_test", f"the prompt is that of the test row {place}"
        if isinstance(verdict, tuple):
            reason, detail = verdict
            excluded.append(Excluded(reason=reason, detail=detail, where=row.source or row.id))
        else:
            kept.append(row)
    return kept, excluded


def _key(prompt: Sequence[Message], system_prompt: str | None) -> str:
    """Of what is asked; the system prompt of the task is everybody's, and some rows have it only later."""
    asked = [message for message in prompt if message.role != "system" or message.content != system_prompt]
    return prompt_key(Preference(prompt=asked, chosen="", rejected=""))


def _as_conversation(row: Preference | Labelled) -> Conversation:
    replies = [row.chosen, row.rejected] if isinstance(row, Preference) else [row.reply]
    return Conversation(messages=[*row.prompt, Message(role="assistant", content="\n\n".join(replies))])
