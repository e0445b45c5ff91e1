"""`tunesmith run`: execute a recipe, show its events, and say at the end where to look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tunesmith.cli.terminal import TerminalSink
from tunesmith.events import NullSink
from tunesmith.pipeline import execute, follows_another
from tunesmith.resolve import load_recipe
from tunesmith.store import Run, Store, default_root


def run_recipe(path: Path, overrides: Sequence[str], root: Path | None, until: str | None) -> None:
    """Run a recipe to its end, or to the end of one stage."""
    console = Console()
    resolved = load_recipe(path, overrides)
    store = Store(root or default_root())
    if follows_another():
        execute(resolved, store, NullSink(), until)
        return
    with TerminalSink(console) as sink:
        run = execute(resolved, store, sink, until)
    _say_where_to_look(console, run, root)


def _say_where_to_look(console: Console, run: Run, root: Path | None) -> None:
    from tunesmith.cli.showing import score_table

    evaluation = run.artifact("evaluate")
    if evaluation is not None:
        table = score_table(evaluation, console.width)
        if table is not None:
            console.print()
            console.print(table)
    at = f" --root {root}" if root else ""
    lines = [("look at the run", f"tunesmith show {run.name}{at}")]
    if run.artifact("tokenize") is not None:
        lines.append(("tokens and mask", f"tunesmith show {run.name} --sample 0 --tokens{at}"))
    if evaluation is not None:
        lines.append(("every answer", str(run.path / "evaluate" / "report.html")))
    if run.artifact("export") is not None:
        lines.append(("chat here", f"tunesmith chat {run.name}{at}"))
        lines.append(("serve it", f"tunesmith serve {run.name}{at}"))
    console.print()
    for label, command in lines:
        console.print(f"  [dim]{label:<16}[/] {escape(command)}", highlight=False, soft_wrap=True)
