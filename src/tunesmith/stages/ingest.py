"""ingest: example files in, conversations and a task out. Nothing is held out or thrown away here without a reason on
disk; test rows are set apart before any teacher can see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tunesmith.data.identity import prompt_key, with_system_prompt
from tunesmith.data.readers import read_examples
from tunesmith.data.schema import check_schema, load_schema
from tunesmith.data.split import decide_splits, straddling
from tunesmith.errors import DataError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, EventSink
from tunesmith.recipe import Ingest
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded, Inputs, Outcome, Task

_ROWS_PER_EVENT = 1000


def run(section: Ingest, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. Counts: rows_read = kept + rejected; kept = train + test.

    DataError where a file cannot be read as a whole, or where no row of the example files can be used.
    """
    task = _task(section, inputs)
    rows, rejects = _read(section, inputs, ctx.events)
    num_read = len(rows) + len(rejects)
    rows = [with_system_prompt(row, task.system_prompt) for row in _with_origins(rows)]
    if section.test_fraction:
        rows = decide_splits(rows, section.test_fraction, section.rng_seed)
    rows, leaked = _without_test_rows(rows)
    rejects.extend(leaked)
    num_test = sum(row.split == "test" for row in rows)
    if section.files and num_test == len(rows):
        raise _nothing_usable(section, rejects)
    _tell(rows, rejects, ctx.events)
    write_records(out_dir / "conversations.jsonl", rows)
    write_records(out_dir / "rejects.jsonl", rejects)
    write_records(out_dir / "task.json", [task])
    counts = {
        "rows_read": num_read,
        "kept": len(rows),
        "rejected": len(rejects),
        "train": len(rows) - num_test,
        "test": num_test,
    }
    return Outcome("conversations", counts, {"num_train": len(rows) - num_test, "num_test": num_test})


def _task(section: Ingest, inputs: Inputs) -> Task:
    schema = section.output_schema
    if isinstance(schema, str):
        schema = load_schema(inputs.files[schema])
    elif schema is not None:
        check_schema(schema, where="recipe.ingest.output_schema")
    return Task(description=section.task, system_prompt=section.system_prompt, output_schema=schema)


def _read(section: Ingest, inputs: Inputs, events: EventSink) -> tuple[list[Conversation], list[Excluded]]:
    rows: list[Conversation] = []
    rejects: list[Excluded] = []
    twice = next((name for name in section.files if name in section.test_files), None)
    if twice is not None:
        raise DataError(
            f"{twice} is named as examples and as held-out examples",
            where="recipe.ingest.test_files",
            hint="name it once",
        )
    for name in (*section.files, *section.test_files):
        for example in read_examples(inputs.files[name]):
            if isinstance(example, Excluded):
                rejects.append(example)
            else:
                example.licence = example.licence or section.licence
                if name in section.test_files:
                    example.split = "test"
                rows.append(example)
            if (len(rows) + len(rejects)) % _ROWS_PER_EVENT == 0:
                _progress(rows, rejects, events)
    _progress(rows, rejects, events)
    return rows, rejects


def _progress(rows: Sequence[Conversation], rejects: Sequence[Excluded], events: EventSink) -> None:
    detail: dict[str, float | int | str] = {"kept": len(rows), "rejected": len(rejects)}
    events.emit(Progress(task="read", done=len(rows) + len(rejects), unit="rows", detail=detail))


def _with_origins(rows: Sequence[Conversation]) -> list[Conversation]:
    """Rows that name no origin get one that is equal for equal prompts, so that a split cannot part them."""
    first = {row.id: prompt_key(row)[:16] for row in rows if row.origin == row.id}
    return [row.model_copy(update={"origin": first.get(row.origin, row.origin)}) for row in rows]


def _without_test_rows(rows: Sequence[Conversation]) -> tuple[list[Conversation], list[Excluded]]:
    """The rows without those that would show a test row to the trainer: same prompt, or same origin. The test row stays."""
    prompts = {prompt_key(row): row.source for row in rows if row.split == "test"}
    parted = straddling(rows)
    kept: list[Conversation] = []
    leaked: list[Excluded] = []
    for row in rows:
        key = prompt_key(row)
        detail = ""
        if row.split != "test" and key in prompts:
            detail = f"the prompt is that of the test row {prompts[key]}"
        elif row.split != "test" and row.origin in parted:
            detail = f"its origin {row.origin!r} also has test rows"
        if detail:
            leaked.append(Excluded(reason="in_test", detail=detail, where=row.source, conversation=row))
        else:
            kept.append(row)
    return kept, leaked


def _nothing_usable(section: Ingest, rejects: Sequence[Excluded]) -> DataError:
    if not rejects:
        return DataError(
            "every example is marked as a test row, so there is nothing to learn from",
            where="recipe.ingest.files",
            hint="leave some rows without split, or lower ingest.test_fraction",
        )
    shown = "; ".join(f"{reject.where}: {reject.detail}" for reject in rejects[:3])
    return DataError(
        f"no row of {', '.join(section.files)} can be learnt from. The first reasons: {shown}",
        where="recipe.ingest.files",
        hint=f"reasons in all: {_reasons(rejects)}",
    )


def _reasons(rejects: Sequence[Excluded]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in Counter(each.reason for each in rejects).most_common())


def _tell(rows: Sequence[Conversation], rejects: Sequence[Excluded], events: EventSink) -> None:
    if rejects:
        first = rejects[0]
        message = (
            f"{len(rejects):,} of {len(rows) + len(rejects):,} rows cannot be used ({_reasons(rejects)}); "
            f"the first is {first.where}: {first.detail}. All are in rejects.jsonl"
        )
        events.emit(Note(level="warning", message=message))
    alone = [row for row in rows if row.reply is None]
    if alone:
        fields = ", ".join(sorted({name for row in alone for name in row.metadata})[:6])
        extra = f" (other fields there: {fields})" if fields else ""
        events.emit(
            Note(
                level="warning",
                message=f"{len(alone):,} rows are prompts without a reply{extra}: the first is {alone[0].source}. "
                "They are kept, and curate will leave them out",
            )
        )
