"""What listed filters may use, opened when first asked: a judge behind its ledger, a small model that scores texts, a
tokenizer that counts. Brings teachers, models and inference together for the filters, which know none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from tunesmith.protocols import Context, FilterContext, TextScorer
from tunesmith.recipe import Curate
from tunesmith.stages.judge import LazyJudge
from tunesmith.types import Task


class FilterTools:
    """Everything behind a FilterContext. Close it; what was not asked for was never opened."""

    def __init__(self, section: Curate, files: Mapping[str, Path], out_dir: Path, ctx: Context) -> None:
        self._out_dir = out_dir
        self._ctx = ctx
        self._judge = LazyJudge(section, files, out_dir, ctx, "recipe.curate")
        self._scorers: dict[str, TextScorer] = {}

    def context(self, task: Task) -> FilterContext:
        """For the builders of filters."""
        scratch = self._out_dir / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return FilterContext(
            task, self._open_scorer, self._open_counter, self._judge.ask_all, self.num_threads, scratch
        )

    @cached_property
    def num_threads(self) -> int:
        """Threads that loops over many rows may use."""
        return self._ctx.runtime.usable_threads

    def facts(self) -> dict[str, Any]:
        """The judge's identity, requests and cost; {} where none was asked. Settles the ledger: call it when all is asked."""
        return self._judge.facts()

    def __enter__(self) -> FilterTools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.__exit__(kind, error, trace)

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
