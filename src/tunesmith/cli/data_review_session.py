"""One sitting of `tunesmith data review`: rows shown, keys asked for, decisions written one by one. Reads keys from a
terminal and lines from a pipe; opens the editor for an edit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tunesmith.cli.data_rows import render_row
from tunesmith.data.edit_form import EditForm
from tunesmith.data.review import Decision, Kind, Review, Standing
from tunesmith.data.statistics.texts import one_line
from tunesmith.errors import DataError
from tunesmith.text.jsonl import RecordLog
from tunesmith.types import Conversation, Message, conversation_id

PAST: dict[Kind, str] = {"keep": "kept", "edit": "edited", "reject": "rejected", "undecided": "taken back"}
_KEYS = "keep, edit, reject, skip, back, undo, quit"


class _NoEditor(Exception):
    """The editor is not there, or it failed: said to the person, who decides what then."""


class Keys:
    """What the person presses: a key of a terminal, a line of a pipe. The end of a pipe is `q`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._single = sys.stdin.isatty()

    def ask(self, choices: str) -> str:
        """The first letter of a choice; of a pipe the whole line."""
        self._console.print(self._choices(choices), end=" ")
        if not self._single:
            line = self._read()
            return "q" if line is None else line
        import click

        try:
            key = click.getchar()
        except EOFError:
            key = "q"
        self._console.print(Text(key if key.isprintable() else ""))
        return key

    def line(self, question: str) -> str:
        """A line of text."""
        self._console.print(question, end="", markup=False)
        return self._read() or ""

    def _read(self) -> str | None:
        """A line; None at the end."""
        line = sys.stdin.readline()
        if not self._single:
            self._console.print()
        return line.strip() if line else None

    def _choices(self, choices: str) -> Text:
        text = Text()
        for choice in choices.split(", "):
            text.append(choice[0], style="bold reverse").append(f"{choice[1:]}  ")
        return text


def edit(console: Console, keys: Keys, messages: list[Message]) -> list[Message] | None:
    """The messages as the person left them in the editor; None where nothing came of it.

    What cannot be read is said and opened again as the person left it, so that no work is lost.
    """
    form = EditForm(messages)
    text = form.write(messages)
    with tempfile.TemporaryDirectory(prefix="tunesmith-review-") as folder:
        path = Path(folder) / f"row{form.ending}"
        path.write_text(text, encoding="utf-8", newline="")
        while True:
            try:
                _open_editor(path)
                found = form.read(path.read_bytes().decode("utf-8"))
            except _NoEditor as problem:
                console.print(Text(str(problem), style="red"))
                return None
            except (DataError, UnicodeDecodeError) as problem:
                console.print(Text(f"this cannot be taken: {problem}", style="red"))
                if keys.ask("edit again, give up")[:1].lower() == "e":
                    continue
                return None
            if found == messages:
                console.print("nothing was changed", style="yellow")
                return None
            return found


def _open_editor(path: Path) -> None:
    """$VISUAL, $EDITOR or vi, until it is closed. _NoEditor where there is none or it fails."""
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    if not command or shutil.which(command[0]) is None:
        name = command[0] if command else ""
        raise _NoEditor(f"there is no editor {name!r} here; name one in the environment variable EDITOR")
    done = subprocess.run([*command, str(path)], check=False)
    if done.returncode:
        raise _NoEditor(f"the editor {command[0]} ended with {done.returncode}")


class Session:
    """One sitting: the rows seen so far, so that a person can go back, and what was decided on them."""

    def __init__(
        self,
        rows: Iterator[Conversation],
        total: int,
        review: Review,
        log: RecordLog,
        console: Console,
        *,
        width: int,
        by: str | None,
    ) -> None:
        self.num_decided = Counter[Kind]()
        self.total = total
        self._rows = rows
        self._shown: list[Conversation] = []
        self._decided: dict[str, Decision] = {}  # by the row's id
        self._review = review
        self._log = log
        self._console = console
        self._width = width
        self._by = by

    def run(self, keys: Keys) -> None:
        """Until the rows or the person end it."""
        place = 0
        while (row := self._row(place)) is not None:
            self._show(place, row)
            key = keys.ask(_KEYS)
            match key[:1].lower():
                case "k":
                    self._decide(row, "keep")
                case "r":
                    self._decide(row, "reject", reason=key[1:].strip() or keys.line("reason (Enter = none): "))
                case "u":
                    if not self._take_back(row):
                        continue
                case "e":
                    found = edit(self._console, keys, self._as_decided(row))
                    if found is None:
                        continue
                    as_it_was = found == self._review.seen_form(row)
                    self._decide(row, "keep" if as_it_was else "edit", edited=None if as_it_was else found)
                case "b":
                    if not place:
                        self._console.print("this is the first row", style="yellow")
                    place = max(0, place - 1)
                    continue
                case "s":
                    pass
                case "q":
                    return
                case _:
                    self._console.print(Text(f"{key!r} is no key here", style="yellow"))
                    continue
            place += 1

    def _row(self, place: int) -> Conversation | None:
        """The row at a place of this sitting; rows that repeat a decided one are not asked about again."""
        while place >= len(self._shown):
            row = next(self._rows, None)
            if row is None:
                return None
            if row.id in self._decided:
                self.total -= 1
                continue
            self._shown.append(row)
        return self._shown[place]

    def _show(self, place: int, row: Conversation) -> None:
        done = ", ".join(f"{number} {PAST[verdict]}" for verdict, number in self.num_decided.items() if number)
        share = f"{place + 1:,} of {self.total:,} ({place / self.total:.0%})"
        self._console.print()
        self._console.print(Text(share, style="bold").append(f"  {done}", style="dim"))
        render_row(self._console, row.model_copy(update={"messages": self._as_decided(row)}), self._width)
        standing = self._standing(row)
        if standing is None:
            return
        decision = standing.decision
        what = f"{PAST[decision.verdict]}{': ' + decision.reason if decision.reason else ''}"
        if standing.decided:
            self._console.print(Text(f"decided: {what}", style="yellow"))
        else:
            old = next((each.content for each in reversed(decision.messages) if each.role == "assistant"), "")
            text = f"reviewed before with another reply ({what}): {one_line(old, 200)}"
            self._console.print(Text(text, style="yellow"))

    def _standing(self, row: Conversation) -> Standing | None:
        decision = self._decided.get(row.id)
        if decision is None:
            return self._review.standing(row)
        return None if decision.verdict == "undecided" else Standing(decision, decided=True)

    def _as_decided(self, row: Conversation) -> list[Message]:
        """The messages to show and to edit: the row's, or what an edit of this row made of them."""
        standing = self._standing(row)
        changed = standing.decision.edited if standing and standing.decided else None
        return changed or self._review.seen_form(row)

    def _take_back(self, row: Conversation) -> bool:
        standing = self._standing(row)
        if standing is None or not standing.decided:
            self._console.print("there is no decision to take back", style="yellow")
            return False
        self._decide(row, "undecided", seen=standing.decision.messages)
        return True

    def _decide(
        self,
        row: Conversation,
        verdict: Kind,
        *,
        reason: str = "",
        edited: list[Message] | None = None,
        seen: list[Message] | None = None,
    ) -> None:
        seen = seen or self._review.seen_form(row)
        decision = Decision(
            verdict=verdict,
            id=conversation_id(seen),
            messages=seen,
            edited=edited,
            reason=reason,
            source=row.source,
            when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            by=self._by,
        )
        self._log.append(decision)
        self._log.sync()
        before = self._decided.get(row.id)
        if before is not None:
            self.num_decided[before.verdict] -= 1
        self.num_decided[verdict] += 1
        self._decided[row.id] = decision
