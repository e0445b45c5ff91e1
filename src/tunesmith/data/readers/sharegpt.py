"""ShareGPT conversations: a list `conversations` of turns, each with from and value (or role and content)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import Fields, system_first
from tunesmith.data.readers.shape import Reading, Shape
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message

_NAMES = ("conversations", "conversation")


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    return [Reading(name, lambda fields, name=name: [_dialogue(fields, name)]) for name in _NAMES if name in row]


def _dialogue(fields: Fields, name: str) -> list[Message]:
    turns = [parse_turn(turn, number) for number, turn in enumerate(fields.take_list(name), start=1)]
    return [*system_first(fields), *turns]


READER = Shape(
    name="sharegpt",
    fields="conversations (a list of from and value)",
    names=_NAMES,
    readings=_readings,
)
