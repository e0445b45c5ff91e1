"""A judge for filters, rewards and comparisons: a teacher whose answers outlive the stage that asked for them.

An answer depends on the judge and the question alone, so all runs of a root share one ledger per judge: another threshold, another
filter or one more row asks only what was never asked. Knows nothing of what the questions mean.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from filelock import FileLock, Timeout

from tunesmith.errors import TeacherError
from tunesmith.events import Note, Progress
from tunesmith.generating.in_order import results_in_order
from tunesmith.hashing import digest_file, digest_json
from tunesmith.protocols import Context
from tunesmith.recipe import TeacherSection
from tunesmith.stages.teacher import concurrency_of, open_teacher
from tunesmith.store import SCRATCH, disk_error
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.text.jsonl import RecordLog, read_log
from tunesmith.types import Completion, Record, TeacherRequest

_SHOW_SECONDS = 0.2
_LOCK_POLL_SECONDS = 0.5


class AskingSection(Protocol):
    """A section whose stage asks a judge."""

    @property
    def teacher(self) -> TeacherSection | None: ...
    @property
    def budget_usd(self) -> float | None: ...
    @property
    def max_failures(self) -> int: ...


class Asked(Record):
    """One question of an order (out_dir), in scratch/. The last line of a key counts."""

    key: str
    error: str | None = None  # why nobody answered


class LazyJudge:
    """A judge that is opened when it is first asked, for code that is not async. Use it in a with block.

    where: of the section in the recipe. Other arguments as of Judge.
    """

    def __init__(
        self, section: AskingSection, files: Mapping[str, Path], out_dir: Path, ctx: Context, where: str
    ) -> None:
        self._arguments = (section, files, out_dir, ctx, where)
        self._judge: Judge | None = None
        self._runner = asyncio.Runner()

    def ask_all(self, requests: Sequence[TeacherRequest]) -> list[Completion]:
        """As Judge.ask_all."""
        if self._judge is None:
            self._judge = Judge(*self._arguments)
        return self._runner.run(self._judge.ask_all(requests))

    def facts(self) -> dict[str, Any]:
        """As Judge.facts; {} where none was asked, by this process or one that was killed."""
        if self._judge is None and _asked_path(self._arguments[2]).is_file():
            self._judge = Judge(*self._arguments)
        return {} if self._judge is None else self._judge.facts()

    def __enter__(self) -> LazyJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._judge is not None:
            self._runner.run(self._judge.aclose())
        self._runner.close()


class Judge:
    """The teacher of a section behind its ledger. Opens it all when made; close it.

    The ledger is in ctx.ledgers, in a folder named after what the teacher is; where ctx has none, in out_dir. One process writes
    it at a time, others wait. `budget_usd` counts what was spent since this order (out_dir) first began: answers that
    were there before cost it nothing.
    """

    def __init__(
        self, section: AskingSection, files: Mapping[str, Path], out_dir: Path, ctx: Context, where: str
    ) -> None:
        assert section.teacher is not None  # the recipe checks that judges have a teacher
        self._where = where
        self.num_failed = 0
        self._ctx = ctx
        self._max_failures = section.max_failures
        self._kept_at = out_dir / "answers.jsonl"
        self._asked_at = _asked_path(out_dir)
        self._asked = {line.key: line.error for line in read_log(self._asked_at, Asked)}
        self._lock: FileLock | None = None
        teacher = open_teacher(
            section.teacher, where=f"{where}.teacher", files=files, runtime=ctx.runtime, events=ctx.events
        )
        place = out_dir
        if ctx.ledgers is not None:
            place = ctx.ledgers / f"judge-{_name(section.teacher, files)}"
            self._lock = self._sole_writer(place)
        self._ledger = Ledger(place / "answers.jsonl")
        self._client = LedgerClient(
            teacher,
            self._ledger,
            concurrency=concurrency_of(section.teacher, ctx.runtime),
            budget_usd=section.budget_usd,
            spent_before_usd=_spent_before(out_dir, self._ledger) if place != out_dir else 0.0,
            max_requests=None,
            where=where,
            on_answer=self._count,
        )

    async def ask_all(self, requests: Sequence[TeacherRequest]) -> list[Completion]:
        """Answers in the order of the requests. TeacherError where more fail than the recipe allows, BudgetExceeded at the
        hard stop."""
        with RecordLog(self._asked_at) as log:
            return await self._ask_all(requests, log)

    async def _ask_all(self, requests: Sequence[TeacherRequest], log: RecordLog) -> list[Completion]:
        client, answers, shown_at = self._client, list[Completion](), time.monotonic()
        coming = results_in_order(requests, client.ask, lambda in_flight: True, concurrency=client.concurrency)
        async with aclosing(coming) as completions:
            async for completion in completions:
                self._write_down(requests[len(answers)].key(client.identity), completion, log)
                answers.append(completion)
                self._check(completion)
                if time.monotonic() - shown_at >= _SHOW_SECONDS:
                    shown_at = time.monotonic()
                    self._show(len(answers), len(requests))
        self._show(len(answers), len(requests))
        if client.stopped is not None and len(answers) < len(requests):
            raise client.stopped
        return answers

    def facts(self) -> dict[str, Any]:
        """Identity, requests and cost of all that this order (out_dir) has asked, by processes that were killed too; leaves the
        answers in out_dir. Call it when all is asked."""
        keys = list(self._asked)
        cost = math.fsum(answer.cost_usd for key in keys if (answer := self._ledger.answer(key)) is not None)
        if self._ledger.path == self._kept_at:
            self._ledger.finish(keys)
        else:
            self._ledger.write_excerpt(keys, self._kept_at)
        return {
            "judge": self._client.identity,
            "num_requests": len(keys),
            "num_failed": sum(error is not None for error in self._asked.values()),
            "cost_usd": round(cost, 9),
        }

    async def aclose(self) -> None:
        """Stop asking; let others write."""
        try:
            await self._client.aclose()
        finally:
            self._ledger.close()
            if self._lock is not None:
                self._lock.release()

    def _write_down(self, key: str, completion: Completion, log: RecordLog) -> None:
        """What was asked and whether it failed: a later process may not ask it again."""
        failed = completion.finish_reason == "error"
        error = (completion.error or "unknown") if failed else None
        if key not in self._asked or self._asked[key] != error:
            self._asked[key] = error
            log.append(Asked(key=key, error=error))

    def _check(self, completion: Completion) -> None:
        if self.num_failed > self._max_failures and completion.finish_reason == "error":
            raise TeacherError(
                f"{self.num_failed} answers of the judge failed, allowed are {self._max_failures}; the last: "
                f"{completion.error}",
                where=f"{self._where}.max_failures",
                hint="mend what the message names, then run again: answers that are there are not asked again",
            )

    def _show(self, done: int, total: int) -> None:
        detail: dict[str, float | int | str] = {"failed": self.num_failed, "usd": round(self._client.cost_usd, 6)}
        self._ctx.events.emit(Progress(task="judge", done=done, total=total, unit="answers", detail=detail))

    def _count(self, answer: Completion) -> None:
        self.num_failed += answer.finish_reason == "error"

    def _sole_writer(self, folder: Path) -> FileLock:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "another run asks the same judge; this one goes on when that has ended, and uses its answers"
            self._ctx.events.emit(Note(level="warning", message=message))
            lock.acquire(poll_interval=_LOCK_POLL_SECONDS)
        return lock


def _name(section: TeacherSection, files: Mapping[str, Path]) -> str:
    """Digest of what the judge is. Which key pays and at what price is no part of it."""
    what = section.model_dump(
        mode="json", include={"kind", "model", "base_url", "context_length"} if section.script is None else {"kind"}
    )
    script = None if section.script is None else digest_file(files.get(section.script, Path(section.script)))
    return digest_json([what, script])[:16]


def _asked_path(out_dir: Path) -> Path:
    return out_dir / SCRATCH / "judge_asked.jsonl"


def _spent_before(out_dir: Path, ledger: Ledger) -> float:
    """US dollars on the ledger when this order first began: written down once, so that a resumed run does not begin anew."""
    path = out_dir / SCRATCH / "judge_spent_before.json"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(ledger.spent_usd + ledger.submitted_usd), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise disk_error(error, path, 0) from error
    return float(json.loads(path.read_text(encoding="utf-8")))
