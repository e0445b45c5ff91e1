"""Alpaca rows: instruction, input, output; also system and history, and the names Dolly uses (context, response).

The input follows the instruction after a blank line, as one user message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import BadRow, Fields, as_text, system_first
from tunesmith.data.readers.shape import Reading, Shape
from tunesmith.types import Message

_REPLIES = ("output", "response", "answer", "completion", "target")


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    if "instruction" not in row or "instances" in row:
        return []
    # `output` is the form's own name, so it wins; of the others there must be one.
    replies = ["output"] if "output" in row else [name for name in _REPLIES if name in row]
    if not replies:
        return [Reading("instruction", lambda fields: [_prompt(fields)], has_reply=False)]
    return [Reading(f"instruction -> {name}", lambda fields, name=name: [_dialogue(fields, name)]) for name in replies]


def _dialogue(fields: Fields, reply_name: str) -> list[Message]:
    reply = fields.take_text(reply_name, empty_reason="empty_reply")
    return [*_prompt(fields), Message(role="assistant", content=reply)]


def _prompt(fields: Fields) -> list[Message]:
    instruction = fields.take_text("instruction", empty_reason="empty_prompt")
    given = fields.take_optional_text("input" if "input" in fields else "context")
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return [*system_first(fields), *_history(fields), Message(role="user", content=prompt)]


def _history(fields: Fields) -> list[Message]:
    if "history" not in fields:
        return []
    messages: list[Message] = []
    for number, turn in enumerate(fields.take("history") or [], start=1):
        field = f"history[{number}]"
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("wrong_type", field, f"{field} must be a pair of texts: what the user and the assistant said")
        messages.append(Message(role="user", content=as_text(turn[0], field)))
        messages.append(Message(role="assistant", content=as_text(turn[1], field)))
    return messages


READER = Shape(
    name="alpaca",
    fields="instruction, input (optional), output",
    names=("instruction", "output", "input", "history", "system", "context", "response"),
    readings=_readings,
)
