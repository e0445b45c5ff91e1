"""`tunesmith data review`: rows one by one, each kept, edited or rejected by hand. Every decision is on disk before the next
row is shown. Reads keys from a terminal, lines from a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from tunesmith.cli.data_input import RowSource, find_rows
from tunesmith.cli.data_review_session import PAST, Keys, Session
from tunesmith.cli.data_rows import drawn, selected
from tunesmith.data.review import Review, finish_last_line, is_protected, load_decisions
from tunesmith.data.statistics.texts import one_line
from tunesmith.errors import StoreError
from tunesmith.store import MANIFEST, Run, default_root, find_run, load_artifact
from tunesmith.text.jsonl import RecordLog, read_records
from tunesmith.types import Conversation, Example, Excluded, Task


def review_rows(
    reference: str,
    overlay: Path,
    *,
    root: Path | None,
    form: str,
    where: Sequence[str],
    num_rows: int | None,
    rng_seed: int,
    everything: bool,
    width: int,
    by: str | None,
) -> None:
    """Show rows until there are no more or the person stops."""
    console = Console(highlight=False)
    with _held(overlay):
        finish_last_line(overlay)
        source = find_rows(reference, root, form)
        review = _look(source, overlay, _system_prompt(source, reference, root))

        def wanted() -> Iterator[Conversation]:
            for row in _conversations(selected(source.rows(), where)):
                standing = None if everything else review.standing(row)
                # A row that was kept and then rewritten by a filter is known by its mark alone.
                if standing is None or not (standing.decided or is_protected(row)):
                    yield row

        if num_rows is None:
            total, rows = sum(1 for _ in wanted()), wanted()
        else:
            drawn_rows = [row for row in drawn(wanted(), num_rows, rng_seed) if isinstance(row, Conversation)]
            total, rows = len(drawn_rows), iter(drawn_rows)
        if not total:
            console.print(_nothing(source, where, everything))
            return
        with RecordLog(overlay) as log:
            session = Session(rows, total, review, log, console, width=width, by=by)
            session.run(Keys(console))
        _sum_up(console, session, overlay)


def list_decisions(overlay: Path, reference: str | None, *, root: Path | None, form: str) -> None:
    """The decisions of an overlay, and what they would do to the rows of `reference` where one is named."""
    console = Console(highlight=False, soft_wrap=True)
    _check(overlay)
    if not overlay.exists():
        hint = "`tunesmith data review IN` writes them, --overlay names another file"
        raise StoreError("there are no decisions: there is no such file", where=str(overlay), hint=hint)
    decisions = load_decisions(overlay)
    last = {decision.id: decision for decision in decisions}
    in_force = [decision for decision in last.values() if decision.verdict != "undecided"]
    for decision in in_force:
        told = Text(f"{decision.verdict:<7}", style={"keep": "green", "edit": "cyan"}.get(decision.verdict, "red"))
        told.append(f" {decision.id}  {decision.when}  ", style="dim")
        asked = next((each.content for each in reversed(decision.messages) if each.role == "user"), "")
        told.append(one_line(asked, 60), style="")
        console.print(told.append(f"  {one_line(decision.reason, 60)}" if decision.reason else "", style="red"))
    verdicts = Counter(decision.verdict for decision in in_force)
    parts = ", ".join(f"{verdicts[verdict]:,} {PAST[verdict]}" for verdict in ("keep", "edit", "reject"))
    taken_back = sum(decision.verdict == "undecided" for decision in last.values())
    console.print(Text(f"{overlay}: {len(in_force):,} decisions: {parts}", style="bold"), soft_wrap=True)
    if taken_back:
        console.print(f"{taken_back:,} taken back")
    if reference is None:
        return
    source = find_rows(reference, root, form)
    review = _look(source, overlay, _system_prompt(source, reference, root))
    fates = Counter[str]()
    for row in _conversations(source.rows()):
        standing = review.standing(row)
        review.apply(row)
        fates[
            "decided" if standing and standing.decided else "reviewed with another reply" if standing else "undecided"
        ] += 1
    rows = ", ".join(f"{number:,} {fate}" for fate, number in sorted(fates.items()))
    found = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in review.counts().items() if number)
    console.print(Text(f"{source.name}: {fates.total():,} rows: {rows or 'none'}", style="bold"))
    console.print(Text(f"decisions here: {found or 'none'}"))


def _look(source: RowSource, overlay: Path, system_prompt: str | None) -> Review:
    """The decisions there are, after a look at every row."""
    review = Review(load_decisions(overlay) if overlay.exists() else [], system_prompt)
    others = Counter[str]()

    def conversations() -> Iterator[Conversation]:
        for row in source.rows():
            if not isinstance(row, Conversation | Excluded):
                others[type(row).__name__] += 1
            yield from _conversations([row])

    review.look(conversations())
    if others:
        found = ", ".join(f"{number:,} of kind {kind}" for kind, number in others.items())
        Console(stderr=True).print(Text(f"only conversations can be reviewed; not shown: {found}", style="yellow"))
    return review


def _conversations(rows: Iterable[Example | Excluded]) -> Iterator[Conversation]:
    """The conversations among rows, those that a filter took included (they come where --where asks for a reason)."""
    for row in rows:
        found = row.conversation if isinstance(row, Excluded) else row
        if isinstance(found, Conversation):
            yield found


def _system_prompt(source: RowSource, reference: str, root: Path | None) -> str | None:
    """What the recipe put before every conversation of a run's artifact; None for rows of a file."""
    if not source.made_by:
        return None
    path = Path(reference).expanduser()
    if (path / MANIFEST).is_file():
        artifact = load_artifact(path)
    else:
        named = (path / "run.json").is_file()
        run = Run(path) if named else find_run(source.name.partition("/")[0], root or default_root())
        artifact = run.artifact(source.made_by)
    tasks = read_records(artifact.file("task.json"), Task) if artifact else []
    return tasks[0].system_prompt if tasks else None


def _check(overlay: Path) -> None:
    if overlay.is_dir():
        raise StoreError("this is a folder", where=str(overlay), hint="name the file, such as review.jsonl")


@contextmanager
def _held(overlay: Path) -> Generator[None]:
    """One process at a time writes to an overlay."""
    _check(overlay)
    overlay.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(overlay.with_name(f".{overlay.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            "somebody reviews into this file already", where=str(overlay), hint="wait, or name another with --overlay"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _nothing(source: RowSource, where: Sequence[str], everything: bool) -> Text:
    wanted = f" with {' and '.join(where)}" if where else ""
    if everything:
        return Text(f"no conversation in {source.name}{wanted}", style="yellow")
    return Text(f"no undecided conversation in {source.name}{wanted}; --all shows the decided ones too", style="yellow")


def _sum_up(console: Console, session: Session, overlay: Path) -> None:
    parts = [f"{number:,} {PAST[verdict]}" for verdict, number in session.num_decided.items() if number]
    left = session.total - sum(session.num_decided.values())
    console.print(
        Text(
            f"\n{', '.join(parts) or 'nothing decided'}; {left:,} {'row' if left == 1 else 'rows'} left → {overlay}",
            style="bold",
        )
    )
    console.print(Text(f"in a recipe: curate.review: {overlay.name}", style="dim"))
