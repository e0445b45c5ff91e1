"""What the map shows of an example: its turns as plain text, where it comes from, and what became of it.

Owns the one form (MapRow) that conversations, preferences, labelled answers, documents and excluded rows take here.
Knows nothing of vectors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Message, Preference

Part = Literal["prompt", "reply", "conversation"]
"""Which text of a row decides where it lies. System messages never count: all rows of a set share them."""

_NOT_PLACED_BY = frozenset({"system"})
_ANSWERS = frozenset({"assistant", "chosen", "reply"})
_LONGEST_EMBEDDED = 8_000
"""Characters of a row that are embedded. The mean of a few thousand word vectors no longer moves."""


@dataclass(frozen=True)
class Turn:
    """One block of text under a heading: a role, or what the text is (`reasoning`, `tool call`, `rejected`)."""

    role: str
    text: str


@dataclass(frozen=True)
class MapRow:
    """A row as the map shows it. `reason` is set exactly where the row was excluded."""

    row_id: str
    source: str
    turns: tuple[Turn, ...]
    split: str | None = None
    licence: str | None = None
    reason: str | None = None
    detail: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def num_characters(self) -> int:
        """Characters of all turns."""
        return sum(len(turn.text) for turn in self.turns)


def map_row(example: Example | Excluded) -> MapRow:
    """The row of any example, or of a row that was excluded."""
    if isinstance(example, Excluded):
        return _excluded(example)
    return MapRow(
        row_id=example.id,
        source=example.source,
        turns=tuple(_turns(example)),
        split=example.split,
        licence=example.licence,
        metadata=_metadata(example),
    )


def placed_text(row: MapRow, of: Part) -> str:
    """The text that decides where the row lies: "" where the row has no such part."""
    turns = [turn for turn in row.turns if turn.role not in _NOT_PLACED_BY]
    last_answer = next((n for n in reversed(range(len(turns))) if turns[n].role in _ANSWERS), None)
    if of == "prompt":
        turns = turns[:last_answer]
    elif of == "reply":
        turns = [] if last_answer is None else [turns[last_answer]]
    return "\n".join(turn.text for turn in turns)[:_LONGEST_EMBEDDED].strip()


def _turns(example: Example) -> list[Turn]:
    match example:
        case Conversation():
            return _of_messages(example.messages)
        case Preference():
            answers = [Turn("chosen", example.chosen), Turn("rejected", example.rejected)]
            return [*_of_messages(example.prompt), *answers]
        case Labelled():
            return [*_of_messages(example.prompt), Turn("reply", example.reply)]
        case Document():
            return [Turn("document", example.text)]


def _of_messages(messages: list[Message]) -> list[Turn]:
    turns: list[Turn] = []
    for message in messages:
        if message.reasoning:
            turns.append(Turn("reasoning", message.reasoning))
        if message.content or not message.tool_calls:
            turns.append(Turn(message.role, message.content))
        turns += [Turn("tool call", json.dumps(call, ensure_ascii=False)) for call in message.tool_calls or ()]
    return turns


def _metadata(example: Example) -> dict[str, Any]:
    match example:
        case Labelled():
            return {"desirable": example.desirable, **example.metadata}
        case Preference() if example.scores:
            return {"scores": example.scores, **example.metadata}
        case _:
            return example.metadata


def _excluded(excluded: Excluded) -> MapRow:
    if excluded.conversation is not None:
        row = map_row(excluded.conversation)
        return replace(row, reason=excluded.reason, detail=excluded.detail, source=row.source or excluded.where)
    raw = excluded.raw
    text = raw if isinstance(raw, str) else "" if raw is None else json.dumps(raw, ensure_ascii=False, default=str)
    return MapRow(
        row_id="",
        source=excluded.where,
        turns=(Turn("row as found", text),) if text else (),
        reason=excluded.reason,
        detail=excluded.detail,
    )
