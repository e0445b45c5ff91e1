"""What a person decided on rows (keep, edit, reject), kept apart from the rows in a file of its own, the overlay.

A decision holds the row as it was seen, so the overlay stands by itself: rows may be generated, ingested or curated anew,
and each decision finds its row again by its messages. It never applies to words the person has not seen:

- a row that comes again as it was gets its decision;
- another reply to the same prompt, where the seen row is gone: an edit still applies (the person's text wins for that
  prompt), a keep or a reject does not (the reply it was about is gone) and counts as stale;
- another reply beside the seen row is a row of its own.

The system prompt that a recipe puts before every conversation is no part of a row here: changing it loses no decision.
Refuses to know terminals, recipes and how rows are filtered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.data.filters.parts import with_messages, with_metadata
from tunesmith.data.identity import normalise, prompt_key, with_system_prompt
from tunesmith.errors import DataError
from tunesmith.events import Note
from tunesmith.protocols import Verdict
from tunesmith.text.jsonl import parse_record
from tunesmith.types import Conversation, Message, Record, conversation_id

MARK = "review_verdict"
"""Where a row that was kept or edited says so in its metadata. Written by `Review.apply` alone."""

REASON = "reviewed"
"""Reason of a row that a person rejected."""

NOT_OVERRULED = frozenset(
    {"no_reply", "schema", "duplicate", "in_test", "contaminated", "contaminated_test", "rouge_l_test", REASON}
)
"""Reasons that hold for a reviewed row too: it cannot be learnt from, it is there twice, or it would leak a test row."""

Kind = Literal["keep", "edit", "reject", "undecided"]


class Decision(Record):
    """One line of an overlay. Of several on one row the last counts; `undecided` takes back what was said before."""

    verdict: Kind
    id: str  # of the row as it was seen, for people; found again is it by its messages
    messages: list[Message]  # the row as it was seen, without the recipe's own system prompt
    edited: list[Message] | None = None  # verdict edit: what it shall be
    reason: str = ""
    source: str = ""  # of the row
    when: str = ""  # "2026-11-21T15:00:00Z"
    by: str | None = None


@dataclass(eq=False)
class _Entry:
    """A decision in force, and what it met among the rows."""

    number: int  # place in the overlay
    decision: Decision
    edited_id: str | None
    met: Literal["nothing", "row", "other_reply"] = "nothing"


@dataclass(frozen=True)
class Standing:
    """What is known of a row: decided (by itself, or by an edit of its prompt), or its prompt was reviewed with a reply
    that is gone."""

    decision: Decision
    decided: bool


class Review:
    """The decisions of an overlay over the rows at hand. Holds the decisions and nothing of the rows.

    system_prompt: what the recipe puts before every conversation; None for rows without a recipe. Show every row to
    `look` before the first `apply`: only then is it known which seen rows are gone. Filters that rewrite rows (a mask) go
    before `apply_again`.
    """

    def __init__(self, decisions: Sequence[Decision], system_prompt: str | None) -> None:
        self._system_prompt = system_prompt
        self._by_id: dict[str, _Entry] = {}
        for number, decision in enumerate(decisions):
            seen = conversation_id(self._bare(decision.messages))
            edited = None if decision.edited is None else conversation_id(self._bare(decision.edited))
            self._by_id.pop(seen, None)
            if decision.verdict != "undecided":
                self._by_id[seen] = _Entry(number, decision, edited)
        self._by_edited = {entry.edited_id: entry for entry in self._by_id.values() if entry.edited_id}
        self._by_prompt: dict[str, list[tuple[str, _Entry]]] = {}
        for seen, entry in self._by_id.items():
            key = self._prompt_key(entry.decision.messages)
            self._by_prompt.setdefault(key, []).append((seen, entry))
        self._present: set[str] = set()
        texts = [entry.decision.messages for entry in self._by_id.values()]
        texts += [entry.decision.edited for entry in self._by_id.values() if entry.decision.edited]
        self._asked = {_last_asked(self._bare(messages)) for messages in texts}

    def look(self, rows: Iterable[Conversation]) -> None:
        """Note which of the seen rows are there."""
        for row in rows:
            if self._may_be_known(row):
                found = self._id(row)
                if found in self._by_id or found in self._by_edited:
                    self._present.add(found)

    def standing(self, row: Conversation) -> Standing | None:
        """What is known of a row; None where nothing is."""
        entry, stale = self._find(row)
        if entry is not None:
            return Standing(self._followed(entry)[-1].decision, decided=True)
        return Standing(stale[-1].decision, decided=False) if stale else None

    def apply(self, row: Conversation) -> Verdict:
        """protocols.Filter: the row as it was decided (with MARK in its metadata), or (REASON, why)."""
        entry, stale = self._find(row)
        if entry is None:
            for other in stale:
                other.met = "other_reply"
            return _unmarked(row)
        steps = self._followed(entry)
        for step in steps:
            step.met = "row"
        row_id = self._id(row)
        if row_id not in self._by_id and row_id not in self._by_edited:
            entry.met = "other_reply"
        last = steps[-1].decision
        if last.verdict == "reject":
            return REASON, f"rejected by hand: {last.reason}" if last.reason else "rejected by hand"
        texts = [step.decision.edited for step in steps if step.decision.edited]
        if not texts:
            return with_metadata(row, **{MARK: "keep"})
        whole = with_system_prompt(Conversation(messages=self._bare(texts[-1])), self._system_prompt)
        return with_messages(row, whole.messages, **{MARK: "edit"})

    def apply_again(self, row: Conversation) -> Verdict:
        """protocols.Filter: as `apply`, for rows that came through it and had no decision then: a filter may have made of
        one what a person saw."""
        return None if MARK in row.metadata else self.apply(row)

    def counts(self) -> dict[str, int]:
        """What became of the decisions in force; they add up. To be asked after the last `apply`."""
        found = Counter({"kept": 0, "edited": 0, "edited_other_reply": 0, "rejected": 0, "stale": 0, "no_row": 0})
        for entry in self._by_id.values():
            found[_fate(entry)] += 1
        return dict(found)

    def notes(self) -> list[Note]:
        """What a person should be told after the last `apply`."""
        if not self._by_id:
            return []
        found = self.counts()
        done = [f"{found[name]:,} {name}" for name in ("kept", "edited", "rejected") if found[name]]
        notes = [Note(message=f"decisions of the review: {len(self._by_id):,}; here {', '.join(done) or 'none'}")]
        if found["edited_other_reply"]:
            text = f"edits of the review that replace a reply which is new since then: {found['edited_other_reply']:,}"
            notes.append(Note(message=text))
        if found["stale"]:
            text = (
                f"decisions of the review on replies that are gone, and do not apply to the new ones: {found['stale']:,}; "
                "`tunesmith data review` shows the new ones"
            )
            notes.append(Note(level="warning", message=text))
        if found["no_row"]:
            text = f"decisions of the review whose prompt is not among the rows: {found['no_row']:,}"
            notes.append(Note(level="warning", message=text))
        return notes

    def seen_form(self, row: Conversation) -> list[Message]:
        """The messages of a row as a person is shown them and a decision holds them."""
        return self._bare(row.messages)

    def _bare(self, messages: Sequence[Message]) -> list[Message]:
        first = messages[0] if messages else None
        ours = first is not None and first.role == "system" and first.content == self._system_prompt
        return list(messages[1:] if ours else messages)

    def _id(self, row: Conversation) -> str:
        bare = self._bare(row.messages)
        return row.id if len(bare) == len(row.messages) else conversation_id(bare)

    def _may_be_known(self, row: Conversation) -> bool:
        """False for most rows, at a fifth of what their keys would cost: nobody decided on what they ask."""
        return bool(self._asked) and _last_asked(self._bare(row.messages)) in self._asked

    def _prompt_key(self, messages: Sequence[Message]) -> str:
        return prompt_key(Conversation(id="-", messages=self._bare(messages)))

    def _find(self, row: Conversation) -> tuple[_Entry | None, list[_Entry]]:
        """(the decision on this row, or the newest edit of its prompt whose own row is gone; else what is stale for it)."""
        if not self._may_be_known(row):
            return None, []
        row_id = self._id(row)
        entry = self._by_id.get(row_id) or self._by_edited.get(row_id)
        if entry is not None:
            return entry, []
        here = self._present
        alike = self._by_prompt.get(self._prompt_key(row.messages), [])
        gone = [entry for seen, entry in alike if seen not in here and entry.edited_id not in here]
        edits = [entry for entry in gone if entry.decision.verdict == "edit"]
        if edits:
            return max(edits, key=lambda entry: entry.number), []
        return None, sorted(gone, key=lambda entry: entry.number)

    def _followed(self, entry: _Entry) -> list[_Entry]:
        """The decision, then what was decided later on the text it led to. Only later ones count, so this ends."""
        steps = [entry]
        while (edited := steps[-1].edited_id) is not None:
            later = self._by_id.get(edited)
            if later is None or later.number <= steps[-1].number:
                break
            steps.append(later)
        return steps


class FirstReview:
    """protocols.SetFilter: every row as it was decided."""

    def __init__(self, review: Review) -> None:
        self._review = review

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        self._review.look(rows)
        return map(self._review.apply, rows)


class SecondReview:
    """protocols.SetFilter: rows that filters rewrote, where they became what a person decided on."""

    def __init__(self, review: Review) -> None:
        self._review = review

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        return map(self._review.apply_again, rows)


def is_protected(row: Conversation) -> bool:
    """Whether a person kept or edited this row (as `Review.apply` marked it)."""
    return row.metadata.get(MARK) in ("keep", "edit")


def overrules(row: Conversation, reason: str) -> bool:
    """Whether this exclusion does not hold for a row that came out of `apply`: a person wants it."""
    return reason not in NOT_OVERRULED and is_protected(row)


def load_decisions(path: Path) -> list[Decision]:
    """Every decision of an overlay, in order. A last line that a killed process left unfinished is left out.

    DataError names the line of any other that is no decision.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    decisions: list[Decision] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            decision = parse_record(line, Decision, where=f"{path.name}:{number}")
        except DataError as error:
            if number == len(lines):  # no newline after it: torn
                break
            raise DataError(error.message, where=error.where, hint="correct the line, or take it out") from None
        if (decision.verdict == "edit") != (decision.edited is not None):
            raise DataError(
                f"the verdict is {decision.verdict!r}, and there are {'some' if decision.edited else 'no'} edited messages",
                where=f"{path.name}:{number}",
                hint="`edited` goes with the verdict edit, and with no other",
            )
        decisions.append(decision)
    return decisions


def open_review(path: Path, system_prompt: str | None) -> Review:
    """The decisions of an overlay file, to be applied to rows."""
    return Review(load_decisions(path), system_prompt)


def finish_last_line(path: Path) -> None:
    """Put a newline after a last line that lacks one and is a whole decision (written by hand): a log would cut it off."""
    if not path.exists():
        return
    tail = path.read_bytes().rpartition(b"\n")[2]
    if not tail.strip():
        return
    try:
        parse_record(tail, Decision, where=path.name)
    except DataError:
        return
    with path.open("ab") as stream:
        stream.write(b"\n")


def _last_asked(messages: Sequence[Message]) -> str:
    """The last message before the reply, as prompts are compared."""
    prompt = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    return normalise(prompt[-1].content) if prompt else ""


def _fate(entry: _Entry) -> str:
    verdict = entry.decision.verdict
    if entry.met == "nothing":
        return "no_row"
    if entry.met == "other_reply":
        return "edited_other_reply" if verdict == "edit" else "stale"
    return {"keep": "kept", "edit": "edited"}.get(verdict, "rejected")


def _unmarked(row: Conversation) -> Conversation | None:
    """None, or the row without a mark that an earlier run left."""
    if MARK not in row.metadata:
        return None
    metadata = {name: value for name, value in row.metadata.items() if name != MARK}
    return row.model_copy(update={"metadata": metadata})
