"""`tunesmith watch`: the curves of runs in a browser while they are made, or as a page to keep."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tunesmith.errors import RecipeError
from tunesmith.store import Run, default_root, find_run, write_atomic


def watch(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Runs (name, folder, `latest`) on the same axes.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the page as it is now to a file, and end.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; none takes a free one.")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where runs are kept ($TUNESMITH_ROOT, else ./runs).")
    ] = None,
) -> None:
    """Loss, gradient norm, learning rate, speed and progress of runs, live in a browser."""
    found = find_runs(runs or ("latest",), root)
    if out is None:
        _serve(found, port or 0, open_page)
    else:
        _write_copy(found, out, open_page)


def find_runs(names: Sequence[str], root: Path | None) -> list[Run]:
    """The runs that were named, each once, in that order."""
    found = {run.path.resolve(): run for run in (find_run(name, root or default_root()) for name in names)}
    return list(found.values())


def _write_copy(runs: Sequence[Run], out: Path, open_page: bool) -> None:
    from tunesmith.studio.curves import RunFollower
    from tunesmith.studio.watch_page import POINTS, watch_page

    if out.is_dir():
        raise RecipeError("this is a folder", where=str(out), hint="name the page with its file name, such as run.html")
    followers = [RunFollower(run) for run in runs]
    for follower in followers:
        follower.update()
    page = watch_page([follower.as_json(POINTS) for follower in followers], now=time.time(), live=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode("utf-8", "replace"))
    Console(highlight=False, soft_wrap=True).print(f"page → {escape(str(out))}")
    if open_page:
        webbrowser.open(out.resolve().as_uri())


def _serve(runs: Sequence[Run], port: int, open_page: bool) -> None:
    from tunesmith.studio.curves import RunFollower
    from tunesmith.studio.watch_server import serve_page

    console = Console(highlight=False, soft_wrap=True)

    def tell(address: str) -> None:
        names = ", ".join(run.name for run in runs)
        console.print(f"{escape(names)} → [bold]{address}[/]  [dim]Ctrl-C ends it; the runs go on[/]")
        if open_page:
            webbrowser.open(address)

    serve_page([RunFollower(run) for run in runs], port, tell)
