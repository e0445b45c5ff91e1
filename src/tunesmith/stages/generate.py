"""generate: seeds and a task in, rows written by a teacher out. Wiring only: generator, teacher, ledger and novelty index
meet here. Everything it writes follows from the ledger, so a resumed run writes what an uninterrupted one would."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile as copy_file
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.data.language import LanguageDetector
from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.errors import MissingExtra, StoreError, TeacherError
from tunesmith.events import Note, Progress
from tunesmith.generating import GENERATORS
from tunesmith.generating.estimate import max_requests
from tunesmith.generating.question_response import write_questions
from tunesmith.generating.terms import Stamp, Terms, doubts, require_trade, seeds_for, terms_of
from tunesmith.hashing import digest_file, digest_json
from tunesmith.protocols import Context, EventSink, GenerationContext, Generator
from tunesmith.recipe import Generate, TeacherSection
from tunesmith.stages.teacher import concurrency_of, open_teacher, weights_licence
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Completion, Conversation, Excluded, Inputs, Outcome, Task

NOT_ASKED = (
    "num_rows", "budget_usd", "max_requests", "max_failures", "outputs_licence", "files", "repair",
)  # fmt: skip
"""Parameters that change no request, or (files, repair) only which requests are made: answers are shared across their values."""


SHOW_SECONDS = 0.1
"""Where generation stands is told this often at most: an event for each of 1,500 answers a second costs more than the answers."""


class Tally:
    """Rows and answers so far, told to the sink as they change."""

    def __init__(self, section: Generate, events: EventSink) -> None:
        self.kept: list[Conversation] = []
        self.rejected: list[Excluded] = []
        self.reasons: Counter[str] = Counter()
        self.num_answers = 0
        self.num_failed = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.usd = 0.0
        self.last_error: str | None = None
        self._wanted = section.num_rows
        self._events = events
        self._shown_at = float("-inf")

    def answered(self, completion: Completion) -> None:
        """One request came to its end."""
        self.num_answers += 1
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens
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

    def show(self, *, now: bool = False) -> None:
        """Emit where generation stands; not at once after the last time, unless `now`."""
        at = time.monotonic()
        if at - self._shown_at < SHOW_SECONDS and not now:
            return
        self._shown_at = at
        detail: dict[str, float | int | str] = {
            "asked": self.num_answers,
            "kept": len(self.kept),
            "rejected": len(self.rejected),
            "failed": self.num_failed,
            "tokens": self.prompt_tokens + self.completion_tokens,
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
    generator: Generator = GENERATORS.load(section.generator, where="recipe.generate.generator")
    material = _gather(section, inputs, ctx.events)
    tally = Tally(section, ctx.events)
    with ExitStack() as stack:
        desks = _open_desks(section, inputs, out_dir, ctx, tally, stack)
        craft = _craft(section, inputs, material, desks, tally, ctx.events)
        task = await _write_rows(generator, section, craft, desks, tally)
    _tell_why_it_stopped(section, tally, [desk.client for desk in desks], ctx.events)
    _leave(section, tally, task, out_dir)
    return Outcome("conversations", _counts(tally), _facts(tally, desks, material.terms))


@dataclass
class _Material:
    """What there is before the first request: the task, the examples, those of them a teacher may see, and whose terms
    the rows will stand under."""

    task: Task
    seeds: list[Conversation]
    shown: list[Conversation]
    terms: list[Terms]


def _gather(section: Generate, inputs: Inputs, events: EventSink) -> _Material:
    """Raises RecipeError or DataError where commercial use is demanded and not allowed."""
    ingest = inputs["ingest"]
    task = read_records(ingest.file("task.json"), Task)[0]
    seeds = [row for row in read_records(ingest.file("conversations.jsonl"), Conversation) if row.split != "test"]
    terms = [
        terms_of(one, weights_licence=weights_licence(one, events), stated=section.outputs_licence)
        for one in (section.teacher, section.user_teacher)
        if one is not None
    ]
    require_trade(section, terms)
    for doubt in doubts(section, terms):
        events.emit(Note(level="warning", message=doubt))
    shown = seeds_for(section, seeds)
    if len(shown) < len(seeds):
        left_out = (
            f"{len(seeds) - len(shown)} examples are not shown: their licence is not known to allow commercial use"
        )
        events.emit(Note(level="warning", message=left_out))
    return _Material(task, seeds, shown, terms)


def _craft(
    section: Generate, inputs: Inputs, material: _Material, desks: Sequence[_Desk], tally: Tally, events: EventSink
) -> GenerationContext:
    """What the generator may use. Rows it accepts get their terms here."""
    stamp = Stamp(material.terms, material.seeds)
    novelty = RougeNoveltyIndex()
    for seed in material.seeds:
        novelty.add(novelty_text(seed))
    return GenerationContext(
        task=material.task,
        seeds=material.shown,
        client=desks[0].client,
        novelty=novelty,
        rng_seed=section.rng_seed,
        accept=lambda row: tally.accept(stamp(row)),
        reject=tally.reject,
        files={name: inputs.files[name] for name in section.files},
        user_client=desks[1].client if len(desks) > 1 else None,
        detect_language=_language_detection(events) if section.generator == "translate" else None,
    )


async def _write_rows(
    generator: Generator, section: Generate, craft: GenerationContext, desks: Sequence[_Desk], tally: Tally
) -> Task:
    """Let the generator work, and leave the answers in the artifact where rows came out. Ends with all desks closed."""
    try:
        tally.show(now=True)
        try:
            task = await generator(section, craft, section.num_rows)
        finally:
            tally.show(now=True)
        _check(section, tally, desks[0].client)
        for desk in desks:
            desk.finish()
        return task
    finally:
        for desk in desks:
            await desk.client.aclose()
            desk.ledger.close()


def _leave(section: Generate, tally: Tally, task: Task, out_dir: Path) -> None:
    write_records(out_dir / "conversations.jsonl", tally.kept)
    write_records(out_dir / "rejects.jsonl", tally.rejected)
    write_records(out_dir / "task.json", [task])
    if section.generator == "questions":
        write_questions(out_dir / "questions.jsonl", tally.kept)


def _counts(tally: Tally) -> dict[str, int]:
    return {
        "requests": tally.num_answers,
        "failed": tally.num_failed,
        "rows_parsed": len(tally.kept) + len(tally.rejected),
        "kept": len(tally.kept),
        **{f"rejected_{reason}": number for reason, number in sorted(tally.reasons.items())},
    }


def _facts(tally: Tally, desks: Sequence[_Desk], terms: Sequence[Terms]) -> dict[str, Any]:
    return {
        "teacher": desks[0].client.identity,
        "num_requests": tally.num_answers,
        "num_repaired": sum(desk.client.num_repaired for desk in desks),
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "cost_usd": round(sum(desk.client.cost_usd for desk in desks), 9),
        "teacher_terms": [asdict(one) for one in terms],
    }


def _language_detection(events: EventSink) -> Callable[[str], tuple[str, float]] | None:
    try:
        return LanguageDetector().detect
    except MissingExtra as error:
        told = f"answers in a wrong language are not noticed, unless nothing was changed: {error}"
        events.emit(Note(level="warning", message=told))
        return None


@dataclass
class _Desk:
    """A teacher with its ledger. `kept_at` is where the artifact keeps the answers that were used."""

    client: LedgerClient
    ledger: Ledger
    kept_at: Path

    def finish(self) -> None:
        """Leave the answers that were used in the artifact. A ledger that outlives the stage stays as it is."""
        if self.ledger.path == self.kept_at:
            self.ledger.finish(self.client.keys_by_number)
            return
        self.ledger.close()
        copy_file(self.ledger.path, self.kept_at)
        copied = Ledger(self.kept_at)
        copied.finish(self.client.keys_by_number)
        copied.close()


def _open_desks(
    section: Generate, inputs: Inputs, out_dir: Path, ctx: Context, tally: Tally, stack: ExitStack
) -> list[_Desk]:
    """The teacher's, and that of the second one where there is one; then each has half of the budget."""
    sections = [("teacher", section.teacher, "answers.jsonl")]
    if section.user_teacher is not None:
        sections.append(("user_teacher", section.user_teacher, "user_answers.jsonl"))
    place = _ledger_folder(section, inputs, ctx) or out_dir
    if place != out_dir:
        stack.enter_context(_sole_writer(place))
    desks: list[_Desk] = []
    for name, one, file_name in sections:
        teacher = open_teacher(
            one, where=f"recipe.generate.{name}", files=inputs.files, runtime=ctx.runtime, events=ctx.events
        )
        ledger = Ledger(place / file_name)
        client = LedgerClient(
            teacher,
            ledger,
            concurrency=concurrency_of(one, ctx.runtime),
            budget_usd=None if section.budget_usd is None else section.budget_usd / len(sections),
            max_requests=max_requests(section),
            where="recipe.generate",
            on_answer=tally.answered,
        )
        _tell_what_was_found(ledger, ctx.events)
        desks.append(_Desk(client, ledger, out_dir / file_name))
    return desks


def _ledger_folder(section: Generate, inputs: Inputs, ctx: Context) -> Path | None:
    """Where answers are that serve orders of any size: it depends on what changes the requests, and on nothing else."""
    if ctx.ledgers is None:
        return None
    asked = section.model_dump(mode="json", exclude=set(NOT_ASKED))
    scripts = [one.script for one in (section.teacher, section.user_teacher) if one is not None and one.script]
    digests = [digest_file(inputs.files[name]) for name in scripts]
    return ctx.ledgers / f"generate-{digest_json([asked, inputs['ingest'].manifest.digest, digests])[:16]}"


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            "another process is asking the same teacher for the same rows",
            where=str(folder),
            hint="wait for it, or stop it; its answers will serve this run too",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _tell_why_it_stopped(section: Generate, tally: Tally, clients: Sequence[LedgerClient], events: EventSink) -> None:
    if len(tally.kept) >= section.num_rows:
        return
    stopped = next((client.stopped for client in clients if client.stopped is not None), None)
    why = str(stopped) if stopped is not None else f"{section.generator} has nothing more to work from"
    message = f"stopped at {len(tally.kept)} of {section.num_rows} rows: {why}"
    events.emit(Note(level="warning", message=message))


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
        hint=_what_to_do(section.teacher),
    )


def _what_to_do(teacher: TeacherSection) -> str:
    """About answers of which none is of use: what helps depends on who gave them."""
    look = f"look at what {teacher.title} answered in answers.jsonl"
    if teacher.kind == "scripted":
        return f"{look}, and write lines that the generator can read and that differ from the examples"
    if teacher.kind == "local":
        return f"{look}, choose a larger model (`tunesmith models`), or show fewer examples"
    return f"{look}, or choose a stronger one"


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
