"""ShareGPT conversations: a list `conversations` of turns, each with from and value (or role and content)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import Fields, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.data.readers.sharegpt_page import page_text
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message

_PAGE_HTML = '<div class="markdown'
_NAMES = ("conversations", "conversation")


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    return [
        Reading(name, lambda fields, name=name: [_dialogue(fields, name)], SYSTEM | {name})
        for name in _NAMES
        if name in row
    ]


def _dialogue(fields: Fields, name: str) -> list[Message]:
    turns = [_markdown(parse_turn(turn, number)) for number, turn in enumerate(fields.take_list(name), start=1)]
    return [*system_first(fields), *turns]


def _markdown(message: Message) -> Message:
    """Dumps of ShareGPT hold answers as the HTML of the page; nothing else begins like that."""
    if message.role != "assistant" or not message.content.startswith(_PAGE_HTML):
        return message
    return message.model_copy(update={"content": page_text(message.role, message.content)})


READER = Shape(
    name="sharegpt",
    fields="conversations (a list of from and value)",
    names=_NAMES,
    readings=_readings,
)
