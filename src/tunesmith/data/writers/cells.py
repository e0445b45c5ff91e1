"""What every form shares: the fields beside an example (split, origin, licence, metadata), and the tally of what is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tunesmith.types import Conversation, Example, Message

Tally = Counter[str]


class Unwritable(Exception):
    """An example that the form cannot hold: what in it, in words that stand behind "has"."""


def common(example: Example) -> dict[str, Any]:
    """The fields that readers give back: split, origin where it is not the row's own, licence, metadata."""
    fields: dict[str, Any] = {}
    if example.split:
        fields["split"] = example.split
    if example.origin != example.id:
        fields["origin"] = example.origin
    if example.licence:
        fields["licence"] = example.licence
    metadata = {name: value for name, value in example.metadata.items() if name != "input_at"}
    row_id = metadata.pop("row_id", None)
    if row_id is not None:
        fields["id"] = row_id
    if metadata:
        fields["metadata"] = metadata
    if example.source:
        fields.setdefault("metadata", {}).setdefault("source", example.source)
    return fields


def with_tools(fields: dict[str, Any]) -> dict[str, Any]:
    """The row with the tools of its dialogue at the top, where programs that train on tool calls look for them."""
    tools = fields.get("metadata", {}).get("tools")
    if not isinstance(tools, list):
        return fields
    metadata = {name: value for name, value in fields["metadata"].items() if name != "tools"}
    others = {name: value for name, value in fields.items() if name != "metadata"}
    return {"tools": tools, **others, **({"metadata": metadata} if metadata else {})}


def lead(messages: list[Message]) -> tuple[str, list[Message]]:
    """(text of the system message or "", the other messages)."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


def count_lost(messages: list[Message], lost: Tally, *names: str) -> None:
    """Count the messages that have one of these fields, which the form has no place for."""
    for message in messages:
        for name in names:
            if getattr(message, name):
                lost[name] += 1


def messages_of(example: Example) -> list[Message]:
    """The turns before the answers of an example (all turns of a conversation)."""
    if isinstance(example, Conversation):
        return example.messages
    return list(getattr(example, "prompt", []))
