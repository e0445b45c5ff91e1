"""Shows events on the terminal: a bar with an ETA where it is one, a line every few seconds where it is not."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from tunesmith import events as e

PLAIN_LINE_SECONDS = 10.0


class TerminalSink:
    """An event sink for people. Use as a context manager, so that the cursor is given back."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line = 0.0
        self._measured: dict[str, float] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", style="cyan"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> TerminalSink:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def emit(self, event: e.Event) -> None:
        """Show one event."""
        if isinstance(event, e.Progress):
            self._show_progress(event)
        elif isinstance(event, e.Metric):
            self._measured = {name: value for name, value in event.values.items() if name in _SHOWN}
        elif isinstance(event, e.RunStarted):
            self._console.print(f"[bold]{escape(event.run)}[/]  {' → '.join(event.stages)}")
        elif isinstance(event, e.StageStarted):
            verb = "continues" if event.resumed else "starts"
            if not self._console.is_terminal or event.resumed:
                self._console.print(f"  {event.stage} {verb}", style="dim")
        elif isinstance(event, e.StageFinished):
            self._finish(event)
        elif isinstance(event, e.Note):
            style = "yellow" if event.level == "warning" else "dim"
            mark = "warning" if event.level == "warning" else "·"
            self._console.print(f"    [{style}]{mark} {escape(event.message)}[/]", highlight=False)
        elif isinstance(event, e.StageFailed):
            self._clear_bars()
            self._console.print(f"  [red]✗ {event.stage}[/]")
        elif isinstance(event, e.RunFinished):
            self._console.print(f"[bold green]done[/] in {duration(event.seconds)}")

    def _finish(self, event: e.StageFinished) -> None:
        self._clear_bars()
        self._measured = {}
        counts = "  ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in event.counts.items())
        took = "cached" if event.cached else duration(event.seconds)
        self._console.print(f"  [green]✓ {event.stage:<10}[/] [dim]{took:>8}[/]  {escape(counts)}", highlight=False)

    def _clear_bars(self) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        self._started.clear()

    def _show_progress(self, event: e.Progress) -> None:
        label = event.task if event.task.startswith(event.stage) else f"{event.stage} · {event.task}"
        values = {**event.detail, **{name: value for name, value in self._measured.items() if name not in event.detail}}
        detail = "  ".join(
            f"{_WORDS.get(name, name.replace('_', ' '))} {_short(value)}" for name, value in values.items()
        )
        self._started.setdefault(label, time.monotonic())
        if self._console.is_terminal:
            if label not in self._bars:
                self._bars[label] = self._progress.add_task(escape(label), total=event.total, detail="")
            self._progress.update(self._bars[label], completed=event.done, total=event.total, detail=escape(detail))
            return
        now = time.monotonic()
        if now - self._last_line < PLAIN_LINE_SECONDS:
            return
        self._last_line = now
        self._console.print(
            f"    {label} {self._plain_position(label, event, now)}  {detail}".rstrip(), highlight=False, markup=False
        )

    def _plain_position(self, label: str, event: e.Progress, now: float) -> str:
        if not event.total:
            return f"{event.done:,.0f} {event.unit}"
        position = f"{event.done:,.0f}/{event.total:,.0f} {event.unit}"
        elapsed = now - self._started[label]
        if event.done > 0 and elapsed > 1:
            position += f"  ETA {duration(elapsed * (event.total - event.done) / event.done)}"
        return position


_SHOWN = ("loss", "tokens_per_second", "learning_rate", "usd")
_WORDS = {"tokens_per_second": "tokens/s"}


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
