"""ingest: example files in, conversations and a task out. Nothing is held out or thrown away here without a reason on
disk; test rows are set apart before any teacher can see them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from tunesmith.data.intake import FILES, Intake, Taken, take_examples
from tunesmith.data.readers import EMPTY_FILE, map_examples, read_examples
from tunesmith.data.readers.sampling import Sampled
from tunesmith.data.schema import check_schema, load_schema
from tunesmith.errors import DataError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, EventSink, Pool
from tunesmith.recipe import Ingest, split_sampled
from tunesmith.text.jsonl import RecordLog, dump_record, write_blocks, write_records
from tunesmith.types import Conversation, Example, Excluded, Inputs, Outcome, Split, Task
from tunesmith.workers import open_pool

_BYTES_PER_ROW = 1000  # about: decides only how many workers are worth starting
_ROWS_PER_EVENT = 1000
_FILES_NAMED = 10


def run(section: Ingest, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. Counts: rows_read = kept + rejected + preferences + labelled + documents + not_drawn;
    kept = train + test conversations. The kinds that were not read have no count and no file.

    DataError where a file cannot be read as a whole, or where no row of the example files can be used.
    """
    task = _task(section, inputs)
    num_workers = ctx.runtime.workers_for(_size_bytes(inputs.files.values()) // _BYTES_PER_ROW)
    with (
        _scratch_folder(out_dir) as scratch,
        open_pool(ctx.runtime.workers, num_workers) as pool,
        Intake(scratch / "rows.jsonl", pool) as intake,
    ):
        with _Reading(section, inputs, scratch / "rejects.jsonl", ctx.events) as reading:
            for taken in reading.read(task.system_prompt, pool):
                intake.add(taken)
            intake.decide(section.test_fraction, section.rng_seed)
            for each in intake.leaked():
                reading.reject(each)
        sides = {kind: (intake.num(kind, "train"), intake.num(kind, "test")) for kind in FILES}
        if section.files and not any(train for train, _ in sides.values()):
            raise _nothing_usable(section, reading)
        _tell_rejects(reading, ctx.events)
        _tell_empty(reading.empty_files, ctx.events)
        counts = {"rows_read": len(intake) + reading.num_bad + reading.num_not_drawn}
        for kind, (train, test) in sides.items():
            if kind is Conversation:
                counts |= {"kept": train + test, "rejected": reading.num_rejects, "train": train, "test": test}
            elif train + test:
                counts[FILES[kind].removesuffix(".jsonl")] = train + test
            if kind is Conversation or train + test:
                write_blocks(out_dir / FILES[kind], intake.kept(kind))
        reading.log.path.replace(out_dir / "rejects.jsonl")
    if reading.num_not_drawn:
        counts["not_drawn"] = reading.num_not_drawn
    write_records(out_dir / "task.json", [task])
    _tell_alone(intake, ctx.events)
    return Outcome("conversations", counts, {"num_train": counts["train"], "num_test": counts["test"]})


@contextmanager
def _scratch_folder(out_dir: Path) -> Generator[Path]:
    """Gone at the end, whatever it is: where the disk is full, it is this that fills it."""
    folder = out_dir / "scratch"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size_bytes(paths: Iterable[Path]) -> int:
    return sum(
        each.stat().st_size
        for path in paths
        for each in ((path,) if path.is_file() else path.rglob("*"))
        if each.is_file()
    )


def _task(section: Ingest, inputs: Inputs) -> Task:
    schema = section.output_schema
    if isinstance(schema, str):
        schema = load_schema(inputs.files[schema])
    elif schema is not None:
        check_schema(schema, where="recipe.ingest.output_schema")
    return Task(description=section.task, system_prompt=section.system_prompt, output_schema=schema)


class _Reading:
    """The examples of all files, one by one; bad rows go to the log of rejects, and are counted by reason."""

    def __init__(self, section: Ingest, inputs: Inputs, log: Path, events: EventSink) -> None:
        twice = next((name for name in section.files if name in section.test_files), None)
        if twice is not None:
            raise DataError(
                f"{twice} is named as examples and as held-out examples",
                where="recipe.ingest.test_files",
                hint="name it once",
            )
        log.unlink(missing_ok=True)  # of a run that was interrupted
        self.log = RecordLog(log)
        self.reasons: Counter[str] = Counter()
        self.first: list[Excluded] = []
        self.empty_files: list[str] = []
        self.num_bad = 0  # rows that could not be read
        self.num_not_drawn = 0
        self.num_examples = 0
        self._section = section
        self._inputs = inputs
        self._events = events

    @property
    def num_rejects(self) -> int:
        return self.reasons.total()

    def reject(self, row: Excluded) -> None:
        self._reject(_Rejects.of([row]))

    def _reject(self, rejects: _Rejects) -> None:
        self.reasons.update(rejects.reasons)
        self.first = [*self.first, *rejects.first][:3]
        self.empty_files += rejects.empty_files
        self.log.append_lines(rejects.lines)

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.sync()
        self.log.close()

    def read(self, system_prompt: str | None, pool: Pool) -> Iterator[Taken]:
        """The examples of all files, some hundred at a time."""
        for name in (*self._section.files, *self._section.test_files):
            file, size = split_sampled(name)
            path, form = self._inputs.files[file], self._section.format
            held_out = name in self._section.test_files
            take = partial(_take, self._section.licence, "test" if held_out else None, system_prompt)
            drawn = None
            if size is None:
                batches = map_examples(path, form, pool, take)
            else:
                drawn = Sampled(read_examples(path, form), size, self._section.rng_seed)
                batches = map(take, _batched(drawn, _ROWS_PER_EVENT))
            before = self.num_examples
            for taken, rejects in batches:
                self._reject(rejects)
                self.num_bad += rejects.reasons.total()
                self.num_examples += len(taken.columns.sides)
                yield taken
                self._progress()
            if drawn is not None:
                self._tell_drawn(name, self.num_examples - before, size or 0)
                self.num_not_drawn += drawn.num_left_out
        self._progress()

    def _tell_drawn(self, name: str, num_drawn: int, size: int) -> None:
        if num_drawn < size:
            message = f"{name} asks for {size:,} examples, and the file has {num_drawn:,}: all are taken"
            self._events.emit(Note(level="warning", message=message))

    def _progress(self) -> None:
        detail: dict[str, float | int | str] = {"kept": self.num_examples, "rejected": self.num_bad}
        self._events.emit(Progress(task="read", done=self.num_examples + self.num_bad, unit="rows", detail=detail))


@dataclass(frozen=True)
class _Rejects:
    """Rows that could not be read."""

    lines: bytes
    reasons: Counter[str]
    first: list[Excluded]
    empty_files: list[str]

    @classmethod
    def of(cls, rows: Sequence[Excluded]) -> _Rejects:
        return cls(
            b"".join(map(dump_record, rows)),
            Counter(row.reason for row in rows),
            list(rows[:3]),
            [row.where for row in rows if row.reason == EMPTY_FILE],
        )


def _take(
    licence: str | None, split: Split | None, system_prompt: str | None, read: Sequence[Example | Excluded]
) -> tuple[Taken, _Rejects]:
    """In a worker: what was read, ready for the intake."""
    examples: list[Example] = []
    rejects: list[Excluded] = []
    for each in read:
        if isinstance(each, Excluded):
            rejects.append(each)
            continue
        each.licence = each.licence or licence
        each.split = split or each.split
        examples.append(each)
    return take_examples(examples, system_prompt), _Rejects.of(rejects)


def _batched(examples: Iterable[Example | Excluded], size: int) -> Iterator[list[Example | Excluded]]:
    left = iter(examples)
    while batch := list(islice(left, size)):
        yield batch


def _nothing_usable(section: Ingest, reading: _Reading) -> DataError:
    if not reading.first:
        return DataError(
            "every example is marked as a test row, so there is nothing to learn from",
            where="recipe.ingest.files",
            hint="leave some rows without split, or lower ingest.test_fraction",
        )
    shown = "; ".join(f"{reject.where}: {reject.detail}" for reject in reading.first)
    return DataError(
        f"no row of {', '.join(section.files)} can be learnt from. The first reasons: {shown}",
        where="recipe.ingest.files",
        hint=f"reasons in all: {_reasons(reading)}",
    )


def _reasons(reading: _Reading) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reading.reasons.most_common())


def _tell_rejects(reading: _Reading, events: EventSink) -> None:
    if reading.first:
        first = reading.first[0]
        total = reading.num_examples + reading.num_bad
        message = (
            f"{reading.num_rejects:,} of {total:,} rows cannot be used ({_reasons(reading)}); "
            f"the first is {first.where}: {first.detail}. All are in rejects.jsonl"
        )
        events.emit(Note(level="warning", message=message))


def _tell_empty(names: Sequence[str], events: EventSink) -> None:
    if names:
        more = f" and {len(names) - _FILES_NAMED} more" if len(names) > _FILES_NAMED else ""
        shown = ", ".join(names[:_FILES_NAMED]) + more
        count = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
        events.emit(Note(level="warning", message=f"{count} empty: {shown}; each counts as one rejected row"))


def _tell_alone(intake: Intake, events: EventSink) -> None:
    if not intake.num_alone or intake.first_alone is None:
        return
    fields = ", ".join(sorted(intake.alone_fields)[:6])
    extra = f" (other fields there: {fields})" if fields else ""
    message = (
        f"{intake.num_alone:,} rows are prompts without a reply{extra}: the first is {intake.first_alone.source}. They "
        "are kept, and curate will leave them out"
    )
    events.emit(Note(level="warning", message=message))
