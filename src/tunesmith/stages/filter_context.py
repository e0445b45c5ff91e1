"""What listed filters may use, opened when first asked: a judge behind its ledger, a small model that scores texts, a
tokenizer that counts. Brings teachers, models and inference together for the filters, which know none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.errors import TeacherError
from tunesmith.events import Progress
from tunesmith.protocols import Context, FilterContext, TextScorer
from tunesmith.recipe import Curate
from tunesmith.stages.teacher import concurrency_of, open_teacher
from tunesmith.teachers.ledger import Ledger, LedgerClient
from tunesmith.types import Completion, Task, TeacherRequest

_REQUESTS_AT_ONCE = 1000
"""Requests handed over together: between two such lots, failures are counted and progress is told."""


class FilterTools:
    """Everything behind a FilterContext. Close it; what was not asked for was never opened."""

    def __init__(self, section: Curate, files: Mapping[str, Path], out_dir: Path, ctx: Context) -> None:
        self.num_failed = 0
        self._section = section
        self._files = files
        self._out_dir = out_dir
        self._ctx = ctx
        self._runner = asyncio.Runner()
        self._judge: tuple[LedgerClient, Ledger] | None = None
        self._scorers: dict[str, TextScorer] = {}

    def context(self, task: Task) -> FilterContext:
        """For the builders of filters."""
        return FilterContext(task, self._open_scorer, self._open_counter, self._ask_all, self.num_threads)

    @cached_property
    def num_threads(self) -> int:
        """Threads that loops over many rows may use."""
        return self._ctx.runtime.usable_threads

    def facts(self) -> dict[str, Any]:
        """The judge's identity, requests and cost; {} where none was asked. Settles the ledger: call it when all is asked."""
        if self._judge is None:
            return {}
        client, ledger = self._judge
        ledger.finish(client.asked_keys)
        asked, cost = len(client.asked_keys), round(client.cost_usd, 9)
        return {"judge": client.identity, "num_requests": asked, "num_failed": self.num_failed, "cost_usd": cost}

    def __enter__(self) -> FilterTools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._judge is not None:
            client, ledger = self._judge
            self._runner.run(client.aclose())
            ledger.close()
        self._runner.close()

    def _ask_all(self, requests: Sequence[TeacherRequest]) -> list[Completion]:
        """Answers in the order of the requests. TeacherError where more fail than the recipe allows."""
        if self._judge is None:
            self._judge = self._open_judge()
        client = self._judge[0]
        answers: list[Completion] = []
        for start in range(0, len(requests), _REQUESTS_AT_ONCE):
            answers += self._runner.run(_gather(client, requests[start : start + _REQUESTS_AT_ONCE]))
            detail: dict[str, float | int | str] = {"failed": self.num_failed, "usd": round(client.cost_usd, 6)}
            self._ctx.events.emit(
                Progress(task="judge", done=len(answers), total=len(requests), unit="answers", detail=detail)
            )
            if self.num_failed > self._section.max_failures:
                last = next(answer.error for answer in reversed(answers) if answer.finish_reason == "error")
                raise TeacherError(
                    f"{self.num_failed} answers of the judge failed, allowed are {self._section.max_failures}; the last: {last}",
                    where="recipe.curate.max_failures",
                    hint="mend what the message names, then run again: answers that are there are not asked again",
                )
        return answers

    def _open_judge(self) -> tuple[LedgerClient, Ledger]:
        section = self._section.teacher
        assert section is not None  # the recipe checks that judges have a teacher
        where, runtime, events = "recipe.curate.teacher", self._ctx.runtime, self._ctx.events
        teacher = open_teacher(section, where=where, files=self._files, runtime=runtime, events=events)
        ledger = Ledger(self._out_dir / "answers.jsonl")
        client = LedgerClient(
            teacher,
            ledger,
            concurrency=concurrency_of(section, runtime),
            budget_usd=self._section.budget_usd,
            max_requests=None,
            where="recipe.curate",
            on_answer=self._count,
        )
        return client, ledger

    def _count(self, answer: Completion) -> None:
        self.num_failed += answer.finish_reason == "error"

    def _open_scorer(self, name: str) -> TextScorer:
        if name not in self._scorers:
            import torch

            from tunesmith.inference.scoring import TransformersScorer
            from tunesmith.model.load import load_model

            folder = self._fetch(name)
            tokenizer = _tokenizer(folder)
            device = self._ctx.runtime.device
            device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            torch.set_num_threads(self.num_threads)
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            self._scorers[name] = TransformersScorer(
                load_model(folder, device=device, dtype=torch.float32),
                encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
                start_id=start or 0,
            )
        return self._scorers[name]

    def _open_counter(self, name: str) -> Callable[[Sequence[str]], list[int]]:
        tokenizer = _tokenizer(self._fetch(name))

        def count(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

        return count

    def _fetch(self, name: str) -> Path:
        from tunesmith.model.catalog import fetch_model

        return fetch_model(name, events=self._ctx.events).path


def _tokenizer(folder: Path) -> Any:
    from tunesmith.chat.tokenizer import load_tokenizer

    return load_tokenizer(folder)


async def _gather(client: LedgerClient, requests: Sequence[TeacherRequest]) -> list[Completion]:
    return list(await asyncio.gather(*(client.ask(request) for request in requests)))
