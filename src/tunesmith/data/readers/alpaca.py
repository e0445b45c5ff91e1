"""Alpaca rows: instruction, input, output; also system and history, and the names Dolly uses (context, response).

The input follows the instruction after a blank line, as one user message; `input_at` in the metadata says where it begins,
so that it can be written back. READER also sees the dialogues that BELLE's sets keep inside the fields, PLAIN does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.belle import history_readings, transcript_readings
from tunesmith.data.readers.fields import BadRow, Fields, as_text, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.types import Message

_REPLIES = ("output", "response", "answer", "completion", "target")
_PROMPT = SYSTEM | {"instruction", "input", "context", "history"}


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    plain = _plain_readings(row)
    if not plain:
        return []
    return history_readings(row) or [*plain, *transcript_readings(row)]


def _plain_readings(row: Mapping[str, Any]) -> list[Reading]:
    if "instruction" not in row:
        return []
    replies = [name for name in _REPLIES if name in row]
    if not replies:
        return [Reading("instruction", lambda fields: [_prompt(fields)], _PROMPT, has_reply=False)]
    return [
        Reading(
            f"instruction -> {name}",
            lambda fields, name=name: [_dialogue(fields, name)],
            _PROMPT | {name},
            is_main=name == "output",
            form="alpaca_plain",
        )
        for name in replies
    ]


def _dialogue(fields: Fields, reply_name: str) -> list[Message]:
    reply = fields.take_text(reply_name, empty_reason="empty_reply")
    return [*_prompt(fields), Message(role="assistant", content=reply)]


def _prompt(fields: Fields) -> list[Message]:
    instruction = fields.take_text("instruction", empty_reason="empty_prompt")
    given = fields.take_optional_text("input" if "input" in fields else "context")
    prompt = instruction
    if given.strip():
        prompt = f"{instruction}\n\n{given}"
        fields.notes["input_at"] = len(instruction) + 2
    return [*system_first(fields), *_history(fields), Message(role="user", content=prompt)]


def _history(fields: Fields) -> list[Message]:
    if "history" not in fields:
        return []
    messages: list[Message] = []
    history = fields.take("history") or []
    if isinstance(history, str):  # a cell of a table
        history = Fields({"history": history}).take_list("history")
    for number, turn in enumerate(history, start=1):
        field = f"history[{number}]"
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("wrong_type", field, f"{field} must be a pair of texts: what the user and the assistant said")
        messages.append(Message(role="user", content=as_text(turn[0], field)))
        messages.append(Message(role="assistant", content=as_text(turn[1], field)))
    return messages


_NAMES = ("instruction", "output", "input", "history", "system", "context", "response")
_FIELDS = "instruction, input (optional), output"

READER = Shape(name="alpaca", fields=_FIELDS, names=_NAMES, readings=_readings)
PLAIN = Shape(name="alpaca_plain", fields=_FIELDS, names=_NAMES, readings=_plain_readings)
