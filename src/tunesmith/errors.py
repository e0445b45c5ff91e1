"""Every exception the package raises on purpose, and nothing else.

TunesmithError                 anything a user can cause or fix; carries a hint
├── RecipeError (ValueError)   the recipe is wrong: unknown key, bad value, conflict
├── DataError (ValueError)     an input file or row is wrong
├── ModelError                 a model cannot be found, fetched, read or used
│   └── TemplateMismatch       the chat template differs from the one the model was trained with
├── TeacherError               a teacher cannot be used at all (wrong key, unknown model, no price)
│   └── BudgetExceeded         the next request could pass budget_usd or max_requests
├── TrainingError              training must not go on (non-finite loss, nothing supervised)
├── ExportError                an export check failed; nothing was left under its final name
├── StoreError (OSError)       run folder, artifact or lock problem: damaged file, disk full
├── EngineError                an inference engine died or refused
├── WorkerError                worker processes die again and again
└── MissingExtra (ImportError) an optional dependency is not installed

Each message says what was found, where, and what was expected; `hint` says what to do. Only three places turn
these into text for people: the command line, the server and the studio. Failures of one item (one row, one
teacher answer) are data, not exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TunesmithError(Exception):
    """Base of the tree. `where` is a recipe path (`recipe.train.learning_rate`) or a file position (`a.jsonl:41`)."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(f"{where}: {message}" if where else message)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross from worker processes to the one that reports them.
        return _again, (type(self), self.message, self.where, self.hint)


def _again(kind: type[TunesmithError], message: str, where: str | None, hint: str | None) -> TunesmithError:
    error = kind.__new__(kind)
    TunesmithError.__init__(error, message, where=where, hint=hint)
    return error


class RecipeError(TunesmithError, ValueError):
    """The recipe is wrong."""


class DataError(TunesmithError, ValueError):
    """An input file or row is wrong."""


class ModelError(TunesmithError):
    """A model cannot be found, fetched, read or used."""


class TemplateMismatch(ModelError):
    """The chat template at hand differs from the one the model was trained with."""


class TeacherError(TunesmithError):
    """A teacher cannot be used at all."""


class BudgetExceeded(TeacherError):
    """The next request could pass the hard stop of the recipe."""


class TrainingError(TunesmithError):
    """Training must not go on."""


class ExportError(TunesmithError):
    """An export check failed."""


class StoreError(TunesmithError, OSError):
    """A run folder, artifact or lock is damaged, busy or cannot be written."""


class EngineError(TunesmithError):
    """An inference engine died or refused."""


class WorkerError(TunesmithError):
    """Worker processes die again and again over the same work."""


class MissingExtra(TunesmithError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {module!r}, which is not installed",
            hint=f"pip install 'tunesmith[{extra}]', or 'tunesmith[all]' for everything",
        )


EXTRAS = {
    "torch": "train",
    "numpy": "train",
    "transformers": "train",
    "tokenizers": "train",
    "safetensors": "train",
    "accelerate": "train",
    "peft": "train",
    "psutil": "train",
    "bitsandbytes": "qlora",
    "gguf": "train",
    "sentencepiece": "llama",
    "xllamacpp": "serve",
    "fastapi": "serve",
    "uvicorn": "serve",
    "jinja2": "serve",
    "prometheus_client": "serve",
    "aiohttp": "data",
    "httptools": "data",
    "pyarrow": "data",
    "ray": "ray",
}
"""Optional packages, and the extra of this project that installs each."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a typo most likely meant, or None."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
