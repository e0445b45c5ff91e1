"""curate: conversations in, train and test rows out. Every other row is in excluded.jsonl with its reason, and the counts
add up: rows_in = train + test + all excluded_<reason>.

One rule for all rows, in the order test rows, given rows, generated rows: the earlier one stays. Test rows are left out
only where they are unusable or repeat each other; no likeness to a training row removes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tunesmith.data.filters import Novelty, build_filters
from tunesmith.data.identity import with_system_prompt
from tunesmith.data.split import decide_splits, straddling
from tunesmith.errors import DataError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, EventSink, Filter
from tunesmith.recipe import Curate
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Conversation, Excluded, Inputs, Outcome, Task

_ROWS_PER_EVENT = 500
_REMEDIES = {
    "no_reply": "every row needs a reply: check the names of the columns, or let a `generate` section write rows",
    "schema": "correct ingest.output_schema or the replies, or set curate.check_schema: false",
    "rouge_l": "set curate.max_similarity: 1 where prompts are meant to be alike",
    "rouge_l_test": "set curate.max_similarity: 1 where prompts are meant to be alike",
    "blacklist": "shorten curate.blacklist",
    "prompt_length": "change curate.min_prompt_words and max_prompt_words",
    "reply_length": "change curate.min_reply_words and max_reply_words",
}


def run(section: Curate, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. DataError where no training row is left."""
    source = inputs["generate"] if "generate" in inputs else inputs["ingest"]
    task = read_records(source.file("task.json"), Task)[0]
    rows = [with_system_prompt(row, task.system_prompt) for row in _rows(inputs)]
    excluded: list[Excluded] = []
    kept = _keep(rows, build_filters(section, task), excluded, "check", ctx.events)
    kept = decide_splits(kept, section.test_fraction, section.rng_seed)
    test = [row for row in kept if row.split == "test"]
    parted = straddling(kept)
    filters: list[Filter] = [
        lambda row: ("in_test", f"its origin {row.origin!r} also has test rows") if row.origin in parted else None,
        Novelty(test, section.max_similarity),
    ]
    train = _keep((row for row in kept if row.split == "train"), filters, excluded, "compare", ctx.events)
    reasons = Counter(each.reason for each in excluded)
    if not train:
        raise _empty(len(rows), len(test), reasons)
    _tell(section, train, test, reasons, ctx.events)
    write_records(out_dir / "train.jsonl", train)
    write_records(out_dir / "test.jsonl", test)
    write_records(out_dir / "excluded.jsonl", excluded)
    write_records(out_dir / "task.json", [task])
    counts = {
        "rows_in": len(rows),
        "train": len(train),
        "test": len(test),
        **{f"excluded_{reason}": number for reason, number in sorted(reasons.items())},
    }
    return Outcome("curated", counts, {"num_train": len(train), "num_test": len(test)})


def _rows(inputs: Inputs) -> list[Conversation]:
    """Test rows, then given rows, then generated ones."""
    given = read_records(inputs["ingest"].file("conversations.jsonl"), Conversation)
    if "generate" in inputs:
        given += read_records(inputs["generate"].file("conversations.jsonl"), Conversation)
    return sorted(given, key=lambda row: row.split != "test")


def _keep(
    rows: Iterable[Conversation], filters: Sequence[Filter], excluded: list[Excluded], task: str, events: EventSink
) -> list[Conversation]:
    kept: list[Conversation] = []
    everything = list(rows)
    for number, row in enumerate(everything, start=1):
        verdict = next((verdict for judge in filters if (verdict := judge(row)) is not None), None)
        if verdict is None:
            kept.append(row)
        else:
            reason, detail = verdict
            excluded.append(Excluded(reason=reason, detail=detail, where=row.source, conversation=row))
        if number % _ROWS_PER_EVENT == 0 or number == len(everything):
            live: dict[str, float | int | str] = {"kept": len(kept)}
            events.emit(Progress(task=task, done=number, total=len(everything), unit="rows", detail=live))
    return kept


def _empty(num_rows: int, num_test: int, reasons: Counter[str]) -> DataError:
    if not num_rows:
        return DataError("there are no rows", where="recipe.ingest.files", hint="name files with examples")
    shown = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common(3)) or "none"
    remedies = (_REMEDIES.get(reason) for reason, _ in reasons.most_common())
    everything_tested = "every row is a test row: give files without test_files, or a lower test_fraction"
    return DataError(
        f"no training row is left of {num_rows:,} rows ({num_test:,} are test rows; excluded: {shown})",
        where="recipe.curate",
        hint=next((remedy for remedy in remedies if remedy), everything_tested),
    )


def _tell(
    section: Curate,
    train: Sequence[Conversation],
    test: Sequence[Conversation],
    reasons: Counter[str],
    events: EventSink,
) -> None:
    if not test:
        message = (
            "there are no test rows, so the result will not be measured: name ingest.test_files, or set "
            "ingest.test_fraction"
        )
        events.emit(Note(level="warning", message=message))
    alike = reasons["rouge_l"] + reasons["rouge_l_test"]
    if alike > len(train):
        message = (
            f"{alike:,} rows are left out because their prompts are alike (ROUGE-L above {section.max_similarity:g}), and "
            f"{len(train):,} stay; set curate.max_similarity: 1 where prompts are meant to be alike"
        )
        events.emit(Note(level="warning", message=message))
