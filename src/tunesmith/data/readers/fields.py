"""The fields of one row, taken out one by one with a reason where they are not as expected; turns in a sensible order.

Refuses to know containers (JSON lines, CSV and parquet all end as dicts here) and which shape has which fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.types import Message, Role


class BadRow(Exception):
    """One row that cannot be read: a machine-readable reason, the field, and what was found and expected."""

    def __init__(self, reason: str, field: str | None, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.field = field
        self.detail = detail


@dataclass(frozen=True)
class Pair:
    """A row of two answers, the better one first."""

    prompt: list[Message]
    chosen: str
    rejected: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Thumb:
    """A row of one answer and whether it is a good one."""

    prompt: list[Message]
    reply: str
    desirable: bool


@dataclass(frozen=True)
class Text:
    """A row of text without turns."""

    text: str


Parsed = list[Message] | Pair | Thumb | Text


class Fields:
    """The fields of one row; each is taken once, and what nobody took becomes metadata."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._left = dict(row)
        self.notes: dict[str, Any] = {}  # metadata the shape adds: what it read out of a row and a message cannot hold

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def peek(self, name: str) -> Any:
        """The value, which stays where it is."""
        return self._left.get(name)

    def take(self, name: str) -> Any:
        """The value as it is, None where there is none."""
        return self._left.pop(name, None)

    def take_text(self, name: str, *, empty_reason: str) -> str:
        """Text that must be there. BadRow where it is missing, empty or no text."""
        if name not in self._left:
            raise BadRow("missing_field", name, f"the row has no field {name!r}; it has: {found(self._left)}")
        value = self._left.pop(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise BadRow(empty_reason, name, f"field {name!r} is empty, expected text")
        return as_text(value, name)

    def take_optional_text(self, name: str) -> str:
        """Text that may be missing, null or empty: "" then. BadRow where it is no text."""
        value = self._left.pop(name, None)
        return "" if value is None else as_text(value, name)

    def take_list(self, name: str) -> list[Any]:
        """A list that must be there and hold something; JSON text of one (a CSV cell) will do."""
        value = self._left.pop(name, None)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise BadRow("wrong_type", name, f"field {name!r} is text that is no JSON list") from None
        if not isinstance(value, list):
            raise BadRow("wrong_type", name, f"field {name!r} is {kind_of(value)}, expected a list")
        if not value:
            raise BadRow("empty_prompt", name, f"field {name!r} is an empty list")
        return value

    def rest(self) -> dict[str, Any]:
        """What nobody took, without what is empty, and the shape's own notes."""
        return {**{name: value for name, value in self._left.items() if value not in (None, "")}, **self.notes}


PREFERENCE_NAMES = (("chosen", "rejected"), ("chosen", "reject"), ("messages", "rejected_response"))


def is_preference(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a better and a worse answer."""
    return any(better in row and worse in row for better, worse in PREFERENCE_NAMES)


def is_labelled(row: Mapping[str, Any]) -> bool:
    """Whether a row says of its answer that it is good or bad: `kto_tag`, or a `label` that is true or false."""
    if "kto_tag" in row:
        return True
    label = row.get("label")
    truth = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    return truth and ("messages" in row or "conversations" in row or "output" in row or "completion" in row)


def as_text(value: Any, field: str) -> str:
    """The value where it is text, else BadRow."""
    if not isinstance(value, str):
        hint = "; write it as JSON text" if isinstance(value, dict | list) else ""
        raise BadRow("wrong_type", field, f"field {field!r} is {kind_of(value)}, expected text{hint}")
    return value


def check_turns(messages: Sequence[Message]) -> None:
    """BadRow unless: system only first, then user and assistant in turn, tool results only after a call."""
    previous: Role = "system"
    for number, message in enumerate(messages):
        field = f"turn {number + 1}"
        role = message.role
        if role == "system" and number:
            raise BadRow("bad_turns", field, f"{field} is a system message, which can only come first")
        if role == "assistant" and previous in ("system", "assistant"):
            found_there = (
                "two turns of the assistant follow each other" if previous == "assistant" else "no user spoke yet"
            )
            raise BadRow("bad_turns", field, f"{field} is the assistant's, but {found_there}")
        if role == "user" and previous in ("user", "tool"):
            raise BadRow("bad_turns", field, f"{field} is the user's right after a turn of the {previous}")
        if role == "tool" and not (previous == "tool" or (previous == "assistant" and messages[number - 1].tool_calls)):
            raise BadRow("bad_turns", field, f"{field} is a tool's result, but no tool was called before it")
        if not message.content.strip() and not message.tool_calls and role in ("user", "assistant"):
            reason = "empty_reply" if role == "assistant" else "empty_prompt"
            raise BadRow(reason, field, f"{field} ({role}) is empty")
        previous = role
    if not any(message.role == "user" for message in messages):
        raise BadRow("empty_prompt", None, "no turn is the user's")
    if previous == "tool":
        raise BadRow("bad_turns", f"turn {len(messages)}", "the conversation ends in a tool's result without an answer")


def system_first(fields: Fields) -> list[Message]:
    """[system message] where the row has a field `system` or `system_prompt` (OpenOrca), else []."""
    text = fields.take_optional_text("system")
    text = text if text.strip() else fields.take_optional_text("system_prompt")
    return [Message(role="system", content=text)] if text.strip() else []


def kind_of(value: Any) -> str:
    """The kind of a JSON value in words, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def found(row: Mapping[str, Any]) -> str:
    """The names of a row's fields, for messages."""
    names = [str(name)[:40] for name in row]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) + more) or "nothing"
