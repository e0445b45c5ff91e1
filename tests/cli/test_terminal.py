"""What a person without a terminal sees of a run: a line every few seconds."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from tunesmith.cli import terminal
from tunesmith.cli.terminal import TerminalSink
from tunesmith.events import Metric, Progress


def test_a_line_of_progress_names_each_value_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "PLAIN_LINE_SECONDS", 0.0)
    out = StringIO()
    with TerminalSink(Console(file=out, width=200)) as sink:
        sink.emit(
            Metric(stage="train", step=3, values={"loss": 3.2129, "learning_rate": 2e-4, "tokens_per_second": 144.0})
        )
        detail: dict[str, float | int | str] = {"loss": 3.2129, "tokens_per_second": 113.0}
        sink.emit(Progress(stage="train", task="train", done=3, total=33, unit="steps", detail=detail))
    assert out.getvalue() == "    train 3/33 steps  loss 3.213  tokens/s 113  learning rate 0.0002\n"
