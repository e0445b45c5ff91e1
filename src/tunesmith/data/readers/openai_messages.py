"""OpenAI chat rows: a list `messages` of role and content; tool calls and `tools` are kept, text parts joined line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import Fields, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    if "messages" not in row:
        return []
    return [Reading("messages", lambda fields: [_dialogue(fields)], SYSTEM | {"messages"})]


def _dialogue(fields: Fields) -> list[Message]:
    turns = [parse_turn(turn, number) for number, turn in enumerate(fields.take_list("messages"), start=1)]
    return [*system_first(fields), *turns]


READER = Shape(
    name="openai_messages",
    fields="messages (a list of role and content)",
    names=("messages",),
    readings=_readings,
)
