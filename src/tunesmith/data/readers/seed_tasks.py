"""Self-Instruct seed tasks: an instruction with a list of instances, each an input and an output.

Each instance is one conversation; all instances of a task have one origin. As in alpaca rows, `input_at` in the metadata
says where the input begins, so that it can be written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import BadRow, Fields, kind_of
from tunesmith.data.readers.readings import Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.types import Message

_TAKES = frozenset({"instruction", "instances"})


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    return [Reading("instruction -> instances", _tasks, _TAKES, is_main=True)] if row.keys() >= _TAKES else []


def _tasks(fields: Fields) -> list[list[Message]]:
    instruction = fields.take_text("instruction", empty_reason="empty_prompt")
    dialogues: list[list[Message]] = []
    for number, instance in enumerate(fields.take_list("instances"), start=1):
        place = f"instances[{number}]"
        if not isinstance(instance, dict):
            raise BadRow(
                "wrong_type", place, f"{place} is {kind_of(instance)}, expected an object with input and output"
            )
        inner = Fields(instance)
        given = inner.take_optional_text("input")
        reply = inner.take_text("output", empty_reason="empty_reply")
        prompt = instruction
        if given.strip():
            prompt = f"{instruction}\n\n{given}"
            fields.notes["input_at"] = (
                len(instruction) + 2
            )  # of every instance that has one: they share the instruction
        dialogues.append([Message(role="user", content=prompt), Message(role="assistant", content=reply)])
    return dialogues


READER = Shape(
    name="seed_tasks",
    fields="instruction, instances (a list of input and output)",
    names=("instruction", "instances"),
    readings=_readings,
)
