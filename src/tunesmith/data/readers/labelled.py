"""Rows of one answer with a thumb up or down, as KTO learns from: prompt, completion and label; or any form of dialogue
with `label` (true or false) or `kto_tag`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunesmith.data.readers import alpaca, openai_messages, question_response, sharegpt
from tunesmith.data.readers.fields import BadRow, Fields, Thumb, is_labelled, kind_of
from tunesmith.data.readers.readings import Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.types import Message


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    if not is_labelled(row):
        return []
    label = "kto_tag" if "kto_tag" in row else "label"
    inner = {name: value for name, value in row.items() if name != label}
    shapes = (openai_messages.READER, sharegpt.READER, alpaca.PLAIN, question_response.READER)
    return [
        replace(
            reading,
            label=f"{reading.label}, {label}",
            parse=lambda fields, r=reading: [_thumb(fields, r, label)],
            takes=reading.takes | {label},
        )
        for shape in shapes
        for reading in shape.readings(inner)
        if reading.has_reply
    ]


def _thumb(fields: Fields, reading: Reading, label: str) -> Thumb:
    desirable = _truth(fields.take(label), label)
    (messages,) = reading.parse(fields)
    if not isinstance(messages, list) or messages[-1].role != "assistant" or messages[-1].tool_calls:
        raise BadRow("empty_reply", None, "the row has a label, but does not end in an answer it could be about")
    prompt: list[Message] = messages[:-1]
    return Thumb(prompt, messages[-1].content, desirable)


def _truth(value: Any, name: str) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if value in (0, 1) and isinstance(value, int):
        return bool(value)
    raise BadRow("wrong_type", name, f"field {name!r} is {kind_of(value)}, expected true (a good answer) or false")


READER = Shape(
    name="labelled",
    fields="prompt, completion, label (true or false)",
    names=("label", "kto_tag"),
    readings=_readings,
)
