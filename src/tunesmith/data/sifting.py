"""Rows on disk through filters: filters of single rows run in a pool, span by span; filters of sets here, in row order.

Every row either goes on or stands in the file of excluded rows with its reason. Rows in memory are those of the spans at
work; per row some 40 bytes stay: where it is, its origin and its side. Refuses to know which filters a recipe asks for.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeIs

from tunesmith.data.filters import ROW_FILTERS, build_filter
from tunesmith.data.identity import with_system_prompt
from tunesmith.data.keys import Keys, number_of
from tunesmith.data.review import overrules
from tunesmith.data.rows import RowFile, Rows, RowWriter, Span, all_rows
from tunesmith.data.split import SIDE_OF, TEST, UNDECIDED, Sides
from tunesmith.events import Progress
from tunesmith.hashing import digest_json
from tunesmith.protocols import EventSink, Filter, FilterContext, Pool, SetFilter, Verdict
from tunesmith.recipe import Curate
from tunesmith.recipe.filters import FilterOptions
from tunesmith.text.jsonl import dump_record
from tunesmith.types import Conversation, Excluded, Split, Task

Step = str | FilterOptions | SetFilter
"""A filter of single rows, by its name in ROW_FILTERS or its options, or a filter of sets as it was built."""


@dataclass(frozen=True)
class Checks:
    """Filters of single rows, as what a worker builds them from. Equal checks are built once in each process."""

    section: Curate
    task: Task
    steps: tuple[str | FilterOptions, ...]

    def build(self) -> list[Filter]:
        parts = [self.section.model_dump(mode="json"), self.task.model_dump(mode="json")]
        key = digest_json([*parts, *(each if isinstance(each, str) else each.model_dump() for each in self.steps)])
        if key not in _BUILT:
            _BUILT.clear()  # filters of another pass; a process works on one at a time
            _BUILT[key] = [each for step in self.steps if (each := self._build_one(step)) is not None]
        return _BUILT[key]

    def _build_one(self, step: str | FilterOptions) -> Filter | None:
        if isinstance(step, str):
            return ROW_FILTERS.load(step)(self.section, self.task)
        built = build_filter(step, FilterContext(self.task, _nothing_to_open, _nothing_to_open, _nothing_to_open, 1))
        assert not isinstance(built, SetFilter)
        return built


_ID_BYTES = len('{"id":"0123456789abcdef"')
"""A line begins with the row's id."""

_BUILT: dict[str, list[Filter]] = {}


def _nothing_to_open(*_: Any) -> NoReturn:
    raise AssertionError("a filter of single rows uses no model: one that does is a SetFilter")


@dataclass(frozen=True)
class Table:
    """Rows in their order, with what must be known of all of them at once."""

    rows: Rows
    origins: Keys  # (rows,)
    sides: Sides  # (rows,)
    is_marked: NDArray[np.bool_]  # (rows,) the line itself says its split

    def __len__(self) -> int:
        return len(self.rows)

    def chosen(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Table:
        """Some of the rows, or all in another order."""
        rows = self.rows.chosen(self.rows.numbers[places])
        return Table(rows, self.origins[places], self.sides[places], self.is_marked[places])

    def test_first(self) -> Table:
        """Test rows before all others, each in their order."""
        return self.chosen(np.argsort(self.sides != TEST, kind="stable"))


class Sifting:
    """One pass of rows through the filters of a recipe, with the record of what was excluded. Use it in a with block.

    reasons: excluded rows by reason. num_rewritten: times that a filter changed the messages of a row. Scratch files lie
    in out_dir/scratch until the end of the block.
    """

    def __init__(self, out_dir: Path, section: Curate, task: Task, pool: Pool, events: EventSink) -> None:
        self.reasons: Counter[str] = Counter()
        self.num_rewritten = 0
        self._scratch = out_dir / "scratch"
        self._section = section
        self._task = task
        self._pool = pool
        self._events = events
        self._excluded = RowWriter(out_dir / "excluded.jsonl")
        self._num_files = 0

    def __enter__(self) -> Sifting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._excluded.__exit__(kind, error, trace)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def read(self, sources: Sequence[RowFile], steps: Sequence[Step], task: str) -> Table:
        """The conversations that `steps` keep, test rows first. task: name of the work in progress events."""
        groups = self._grouped(steps)
        first = Checks(self._section, self._task, ())
        if groups and isinstance(groups[0], Checks):
            first, groups = groups[0], groups[1:]
        all_of = [all_rows(source, self._pool) for source in sources]
        spans = (span for rows in all_of for span in rows.spans())
        rows, _, origins, sides = self._check(spans, sum(map(len, sources)), first, task)
        table = Table(rows, origins, sides, sides != UNDECIDED).test_first()
        return self._through(table, groups, task)

    def sift(self, table: Table, steps: Sequence[Step], task: str) -> Table:
        """The rows that `steps` keep, as the steps left them."""
        return self._through(table, self._grouped(steps), task)

    def write(self, table: Table, path: Path, split: Split) -> None:
        """The rows as a file in which each says its split."""
        with RowWriter(path) as writer:
            whole = table.is_marked.all()
            settled = (
                map(_read, table.rows.spans()) if whole else self._pool.map(partial(_settle, split), table.rows.spans())
            )
            for lines in settled:
                writer.write(lines)

    def _grouped(self, steps: Sequence[Step]) -> list[Checks | SetFilter]:
        """Neighbouring steps of single rows as one."""
        groups: list[Checks | SetFilter] = []
        for together, group in groupby(steps, key=_is_set_filter):
            if together:
                groups += [step for step in group if _is_set_filter(step)]
            else:
                members = tuple(step for step in group if not _is_set_filter(step))
                groups.append(Checks(self._section, self._task, members))
        return groups

    def _through(self, table: Table, steps: Iterable[Checks | SetFilter], task: str) -> Table:
        given = table.rows.file.path  # others may still read it
        for step in steps:
            used = table.rows.file.path
            if isinstance(step, Checks):
                rows, places, _, _ = self._check(table.rows.spans(), len(table), step, task)
                table = replace(table.chosen(places), rows=rows)
            else:
                table = self._judge(table, step, task)
            if used not in (given, table.rows.file.path):
                used.unlink()
        return table

    def _check(
        self, spans: Iterable[Span], num_rows: int, checks: Checks, task: str
    ) -> tuple[Rows, NDArray[np.int64], Keys, Sides]:
        """The rows that were kept; for each of them its place among all, its origin and its side."""
        parts: list[tuple[NDArray[np.int64], Keys, Sides]] = [
            (np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint8))
        ]
        done = num_kept = 0
        with self._new_file() as writer:
            for part in self._pool.map(partial(_check_span, checks), spans):
                writer.write(part.kept)
                parts.append((part.places + done, part.origins, part.sides))
                self._exclude(part.excluded, part.reasons)
                self.num_rewritten += part.num_rewritten
                done, num_kept = done + part.num_rows, num_kept + len(part.places)
                self._progress(task, done, num_rows, num_kept)
            file = writer.close()
        places, origins, sides = (np.concatenate(column) for column in zip(*parts, strict=True))
        return all_rows(file, self._pool), places, origins, sides

    def _judge(self, table: Table, step: SetFilter, task: str) -> Table:
        kept = np.zeros(len(table), np.bool_)
        changed = np.zeros(len(table), np.bool_)
        with self._new_file() as writer:
            for place, verdict in zip(range(len(table)), step.judge_all(table.rows), strict=True):
                if isinstance(verdict, tuple):
                    kept[place] = self._stays_or_goes(table.rows[place], verdict)
                    continue
                kept[place] = True
                if verdict is not None:
                    changed[place] = True
                    writer.write(dump_record(verdict))
            rewritten = writer.close()
        self._progress(task, len(table), len(table), int(kept.sum()))
        left = table.chosen(kept)
        if changed.any():
            left = replace(left, rows=self._merged(table.rows, changed, kept, rewritten))
        rewritten.path.unlink(missing_ok=True)
        return left

    def _merged(self, rows: Rows, changed: NDArray[np.bool_], kept: NDArray[np.bool_], rewritten: RowFile) -> Rows:
        """The kept rows as one file, each as it is now."""
        new = all_rows(rewritten, self._pool).lines()
        with self._new_file() as writer:
            for line, is_kept, is_changed in zip(rows.lines(), kept.tolist(), changed.tolist(), strict=True):
                if is_changed:
                    before, line = line, next(new)
                    self.num_rewritten += line[:_ID_BYTES] != before[:_ID_BYTES]  # the id is that of the messages
                if is_kept:
                    writer.write(line)
            file = writer.close()
        return all_rows(file, self._pool)

    def _exclude(self, lines: bytes, reasons: Counter[str]) -> None:
        self._excluded.write(lines)
        self.reasons.update(reasons)

    def _stays_or_goes(self, row: Conversation, verdict: tuple[str, str]) -> bool:
        if self._section.review is not None and overrules(row, verdict[0]):
            return True
        self._exclude(_excluded_line(row, verdict), Counter([verdict[0]]))
        return False

    def _new_file(self) -> RowWriter:
        self._num_files += 1
        return RowWriter(self._scratch / f"rows-{self._num_files}.jsonl")

    def _progress(self, task: str, done: int, total: int, num_kept: int) -> None:
        live: dict[str, float | int | str] = {"kept": num_kept}
        self._events.emit(Progress(task=task, done=done, total=total, unit="rows", detail=live))


@dataclass(frozen=True)
class _Checked:
    """What became of the rows of a span."""

    num_rows: int
    kept: bytes  # lines
    places: NDArray[np.int64]  # of the kept rows in the span
    origins: Keys
    sides: Sides
    excluded: bytes  # lines
    reasons: Counter[str]
    num_rewritten: int  # of the kept rows


def _check_span(checks: Checks, span: Span) -> _Checked:
    filters = checks.build()
    is_reviewed = checks.section.review is not None
    kept: list[bytes] = []
    excluded: list[bytes] = []
    reasons: Counter[str] = Counter()
    num_rewritten = 0
    places: list[int] = []
    origins: list[int] = []
    sides: list[int] = []
    lines = span.lines()
    for place, (line, given) in enumerate(zip(lines, span.parsed(lines), strict=True)):
        row = whole = with_system_prompt(given, checks.task.system_prompt)
        for each in filters:
            verdict: Verdict = each(row)
            if isinstance(verdict, tuple):
                if is_reviewed and overrules(row, verdict[0]):
                    continue
                excluded.append(_excluded_line(row, verdict))
                reasons[verdict[0]] += 1
                break
            row = verdict or row
        else:
            kept.append(line if row is given else dump_record(row))
            num_rewritten += row is not whole and row.messages != whole.messages
            places.append(place)
            origins.append(number_of(row.origin))
            sides.append(SIDE_OF[row.split])
    return _Checked(
        num_rows=len(lines),
        kept=b"".join(kept),
        places=np.array(places, np.int64),
        origins=np.array(origins, np.uint64),
        sides=np.array(sides, np.uint8),
        excluded=b"".join(excluded),
        reasons=reasons,
        num_rewritten=num_rewritten,
    )


def _read(span: Span) -> bytes:
    return b"".join(span.lines())


def _settle(split: Split, span: Span) -> bytes:
    lines = span.lines()
    rows = span.parsed(lines)
    return b"".join(
        dump_record(row.model_copy(update={"split": split})) if row.split is None else line
        for line, row in zip(lines, rows, strict=True)
    )


def _excluded_line(row: Conversation, verdict: tuple[str, str]) -> bytes:
    reason, detail = verdict
    return dump_record(Excluded(reason=reason, detail=detail, where=row.place, conversation=row))


def _is_set_filter(step: Step) -> TypeIs[SetFilter]:
    return isinstance(step, SetFilter)
