"""Fixtures for teachers."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

import tunesmith.teachers.openai as openai_teacher
from tunesmith.teachers.ledger import Ledger


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_teacher, "FIRST_DELAY_SECONDS", 0.01)


@pytest.fixture(autouse=True)
def no_ledger_stays_open(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Tests leave ledgers open as killed processes do; what they held is closed here and not by the garbage collector."""
    opened: list[Ledger] = []
    open_ledger = Ledger.__init__

    def open_and_remember(self: Ledger, path: Path) -> None:
        open_ledger(self, path)
        opened.append(self)

    monkeypatch.setattr(Ledger, "__init__", open_and_remember)
    yield
    for ledger in opened:
        ledger.close()
