"""Plain text: a file of it, or rows of a field `text`. For pre-training, where there are no turns.

A row that also has the fields of an example is one (the hub's alpaca has a `text` beside its instruction).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import Text
from tunesmith.data.readers.readings import Reading
from tunesmith.data.readers.shape import Shape

_OTHERS = (
    "instruction", "messages", "conversations", "conversation", "items", "prompt", "question", "query", "input", "chosen",
    "completion", "response", "answer", "output", "target",
)  # fmt: skip


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    if "text" not in row or any(name in row for name in _OTHERS):
        return []
    return [
        Reading(
            "text",
            lambda fields: [Text(fields.take_text("text", empty_reason="empty_text"))],
            frozenset({"text"}),
            has_reply=False,
        )
    ]


READER = Shape(name="text", fields="text", names=("text",), readings=_readings)
