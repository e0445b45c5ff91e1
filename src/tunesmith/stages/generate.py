"""generate: seeds and a task in, rows written by a teacher out. Wiring only: generator, teacher, ledger and novelty index
meet here. Everything it writes follows from the ledger, so a resumed run writes what an uninterrupted one would."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.errors import TeacherError
from tunesmith.events import Note, Progress
from tunesmith.generating import GENERATORS
from tunesmith.generating.estimate import max_requests
from tunesmith.protocols import Context, EventSink, GenerationContext
from tunesmith.recipe import Generate
from tunesmith.stages.teacher import concurrency_of, open_teacher
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Completion, Conversation, Excluded, Inputs, Outcome, Task


class Tally:
    """Rows and answers so far, told to the sink at every change."""

    def __init__(self, section: Generate, events: EventSink) -> None:
        self.kept: list[Conversation] = []
        self.rejected: list[Excluded] = []
        self.reasons: Counter[str] = Counter()
        self.num_answers = 0
        self.num_failed = 0
        self.num_tokens = 0
        self.usd = 0.0
        self.last_error: str | None = None
        self._wanted = section.num_rows
        self._events = events

    def answered(self, completion: Completion) -> None:
        """One request came to its end."""
        self.num_answers += 1
        self.num_tokens += completion.usage.prompt_tokens + completion.usage.completion_tokens
        self.usd += completion.cost_usd
        if completion.finish_reason == "error":
            self.num_failed += 1
            self.last_error = completion.error
        self.show()

    def accept(self, conversation: Conversation) -> None:
        """One row is kept."""
        self.kept.append(conversation)
        self.show()

    def reject(self, excluded: Excluded) -> None:
        """One row is not."""
        self.rejected.append(excluded)
        self.reasons[excluded.reason] += 1
        self.show()

    def show(self) -> None:
        """Emit where generation stands."""
        detail: dict[str, float | int | str] = {
            "asked": self.num_answers,
            "kept": len(self.kept),
            "rejected": len(self.rejected),
            "failed": self.num_failed,
            "tokens": self.num_tokens,
            "usd": round(self.usd, 6),
        }
        if self.reasons:
            detail["reasons"] = ", ".join(f"{reason} {number}" for reason, number in self.reasons.most_common())
        self._events.emit(
            Progress(task="generate", done=len(self.kept), total=self._wanted, unit="rows", detail=detail)
        )


def run(section: Generate, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. Raises RecipeError before the first request, TeacherError where no row came out."""
    return asyncio.run(_generate(section, inputs, out_dir, ctx))


async def _generate(section: Generate, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    generator = GENERATORS.load(section.generator, where="recipe.generate.generator")
    ingest = inputs["ingest"]
    task = read_records(ingest.file("task.json"), Task)[0]
    seeds = [row for row in read_records(ingest.file("conversations.jsonl"), Conversation) if row.split != "test"]
    tally = Tally(section, ctx.events)
    teacher = open_teacher(
        section.teacher, where="recipe.generate.teacher", files=inputs.files, runtime=ctx.runtime, events=ctx.events
    )
    ledger = Ledger(out_dir / "answers.jsonl")
    client = LedgerClient(
        teacher,
        ledger,
        concurrency=concurrency_of(section.teacher, ctx.runtime),
        budget_usd=section.budget_usd,
        max_requests=max_requests(section),
        where="recipe.generate",
        on_answer=tally.answered,
    )
    _tell_what_was_found(ledger, ctx.events)
    novelty = RougeNoveltyIndex()
    for seed in seeds:
        novelty.add(novelty_text(seed))
    craft = GenerationContext(task, seeds, client, novelty, section.rng_seed, tally.accept, tally.reject)
    try:
        tally.show()
        task = await generator(section, craft, section.num_rows)
        _check(section, tally, client)
        ledger.finish(client.asked_keys)
    finally:
        await client.aclose()
        ledger.close()
    if client.stopped is not None:
        ctx.events.emit(Note(level="warning", message=f"stopped at {len(tally.kept)} rows: {client.stopped}"))
    write_records(out_dir / "conversations.jsonl", tally.kept)
    write_records(out_dir / "rejects.jsonl", tally.rejected)
    write_records(out_dir / "task.json", [task])
    counts = {
        "requests": tally.num_answers,
        "failed": tally.num_failed,
        "rows_parsed": len(tally.kept) + len(tally.rejected),
        "kept": len(tally.kept),
        **{f"rejected_{reason}": number for reason, number in sorted(tally.reasons.items())},
    }
    facts = {"teacher": teacher.identity, "num_requests": tally.num_answers, "cost_usd": round(client.cost_usd, 9)}
    return Outcome("conversations", counts, facts)


def _check(section: Generate, tally: Tally, client: LedgerClient) -> None:
    """A stage that kept nothing has failed, whatever the reason."""
    if tally.kept:
        return
    if client.stopped is not None and not tally.rejected:
        raise client.stopped
    reasons = ", ".join(f"{reason} {number}" for reason, number in tally.reasons.most_common()) or "none"
    raise TeacherError(
        f"{tally.num_answers} requests gave no row that could be kept ({tally.num_failed} failed; rejected: {reasons})"
        + (f"; {client.stopped}" if client.stopped is not None else ""),
        where="recipe.generate",
        hint=f"look at what the teacher {section.teacher.model!r} answered in answers.jsonl, or choose a stronger one",
    )


def _tell_what_was_found(ledger: Ledger, events: EventSink) -> None:
    if ledger.keys:
        events.emit(Note(message=f"{len(ledger.keys)} answers of an interrupted run are on file and not asked again"))
    if ledger.num_damaged:
        message = (
            f"{ledger.num_damaged} damaged lines of {ledger.path.name} are left out; what they held is asked again"
        )
        events.emit(Note(level="warning", message=message))
    if ledger.lost_usd:
        message = (
            f"{ledger.num_lost} requests were in flight when a run was killed; up to ${ledger.lost_usd:.6f} may have been "
            "paid for them, and is counted against the budget"
        )
        events.emit(Note(level="warning", message=message))
