"""ingest: example files in, conversations and a task out. Nothing is held out or thrown away here without a reason on
disk; test rows are set apart before any teacher can see them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.data.intake import FILES, Intake
from tunesmith.data.readers import read_examples
from tunesmith.data.readers.sampling import Sampled
from tunesmith.data.schema import check_schema, load_schema
from tunesmith.errors import DataError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, EventSink
from tunesmith.recipe import Ingest, split_sampled
from tunesmith.text.jsonl import RecordLog, write_records
from tunesmith.types import Conversation, Example, Excluded, Inputs, Outcome, Task

_ROWS_PER_EVENT = 1000


def run(section: Ingest, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """See protocols.Stage. Counts: rows_read = kept + rejected + preferences + labelled + documents + not_drawn;
    kept = train + test conversations. The kinds that were not read have no count and no file.

    DataError where a file cannot be read as a whole, or where no row of the example files can be used.
    """
    task = _task(section, inputs)
    intake = Intake(out_dir / "scratch" / "rows.jsonl", task.system_prompt)
    with _Reading(section, inputs, out_dir / "scratch" / "rejects.jsonl", ctx.events) as reading:
        intake.fill(reading)
        intake.decide(section.test_fraction, section.rng_seed)
        for each in intake.leaked():
            reading.reject(each)
    sides = {kind: (intake.num(kind, "train"), intake.num(kind, "test")) for kind in FILES}
    if section.files and not any(train for train, _ in sides.values()):
        raise _nothing_usable(section, reading)
    _tell_rejects(reading, ctx.events)
    alone = _Alone()
    counts = {"rows_read": len(intake) + reading.num_bad + reading.num_not_drawn}
    for kind, (train, test) in sides.items():
        if kind is Conversation:
            write_records(out_dir / FILES[kind], alone.watch(intake.kept(Conversation)))
            counts |= {"kept": train + test, "rejected": reading.num_rejects, "train": train, "test": test}
        elif train + test:
            counts[FILES[kind].removesuffix(".jsonl")] = write_records(out_dir / FILES[kind], intake.kept(kind))
    if reading.num_not_drawn:
        counts["not_drawn"] = reading.num_not_drawn
    reading.log.path.replace(out_dir / "rejects.jsonl")
    shutil.rmtree(out_dir / "scratch")
    write_records(out_dir / "task.json", [task])
    alone.tell(ctx.events)
    return Outcome("conversations", counts, {"num_train": counts["train"], "num_test": counts["test"]})


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
        self.reasons[row.reason] += 1
        self.first = [*self.first, row][:3]
        self.log.append(row)

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.sync()
        self.log.close()

    def __iter__(self) -> Iterator[Example]:
        for name in (*self._section.files, *self._section.test_files):
            file, size = split_sampled(name)
            examples = read_examples(self._inputs.files[file], self._section.format)
            drawn = Sampled(examples, size, self._section.rng_seed) if size is not None else None
            before = self.num_examples
            for example in drawn or examples:
                if isinstance(example, Excluded):
                    self.num_bad += 1
                    self.reject(example)
                else:
                    self.num_examples += 1
                    yield self._marked(example, held_out=name in self._section.test_files)
                if (self.num_examples + self.num_bad) % _ROWS_PER_EVENT == 0:
                    self._progress()
            if drawn is not None:
                self._tell_drawn(name, self.num_examples - before, size or 0)
                self.num_not_drawn += drawn.num_left_out
        self._progress()

    def _marked(self, example: Example, *, held_out: bool) -> Example:
        example.licence = example.licence or self._section.licence
        if held_out:
            example.split = "test"
        return example

    def _tell_drawn(self, name: str, num_drawn: int, size: int) -> None:
        if num_drawn < size:
            message = f"{name} asks for {size:,} examples, and the file has {num_drawn:,}: all are taken"
            self._events.emit(Note(level="warning", message=message))

    def _progress(self) -> None:
        detail: dict[str, float | int | str] = {"kept": self.num_examples, "rejected": self.num_bad}
        self._events.emit(Progress(task="read", done=self.num_examples + self.num_bad, unit="rows", detail=detail))


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


class _Alone:
    """Counts the prompts without a reply among rows that pass by."""

    def __init__(self) -> None:
        self._number = 0
        self._first = ""
        self._fields: set[str] = set()

    def watch(self, rows: Iterable[Conversation]) -> Iterator[Conversation]:
        for row in rows:
            if row.reply is None:
                self._number += 1
                self._first = self._first or row.source
                self._fields |= set(row.metadata)
            yield row

    def tell(self, events: EventSink) -> None:
        if not self._number:
            return
        fields = ", ".join(sorted(self._fields)[:6])
        extra = f" (other fields there: {fields})" if fields else ""
        message = (
            f"{self._number:,} rows are prompts without a reply{extra}: the first is {self._first}. They are kept, and "
            "curate will leave them out"
        )
        events.emit(Note(level="warning", message=message))
