"""Fixtures for teachers."""

from __future__ import annotations

import pytest

import tunesmith.teachers.openai as openai_teacher


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_teacher, "FIRST_DELAY_SECONDS", 0.01)
