"""ShareGPT: conversations of from and value, `tools` beside them. A tool call is a turn of its own; thoughts, names and call ids have no place."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.data.writers.cells import Tally, Unwritable, common, count_lost, lead, with_tools
from tunesmith.types import Conversation, Document, Example, Labelled, Message

_NAMES = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}


def row(example: Example, lost: Tally) -> dict[str, Any]:
    """One example as its row."""
    if isinstance(example, Document):
        return {"text": example.text, **common(example)}
    messages = example.messages if isinstance(example, Conversation) else example.prompt
    system, others = lead(messages)
    count_lost(messages, lost, "reasoning", "name", "tool_call_id")
    fields: dict[str, Any] = {"conversations": [_turn(message, lost) for message in others]}
    if system:
        fields["system"] = system
    if isinstance(example, Labelled):
        fields["conversations"].append({"from": "gpt", "value": example.reply})
        fields["kto_tag"] = example.desirable
    elif not isinstance(example, Conversation):
        fields["chosen"] = {"from": "gpt", "value": example.chosen}
        fields["rejected"] = {"from": "gpt", "value": example.rejected}
        fields |= {f"score_{side}": value for side, value in example.scores.items()}
    return {**fields, **with_tools(common(example))}


def _turn(message: Message, lost: Tally) -> dict[str, Any]:
    weight = {} if message.weight is None else {"weight": message.weight}
    calls = message.tool_calls or []
    if not calls:
        return {"from": _NAMES[message.role], "value": message.content, **weight}
    if len(calls) > 1:
        raise Unwritable("several tool calls in one turn")
    if message.content.strip():
        lost["words beside a tool call"] += 1
    call = calls[0].get("function", calls[0])
    if calls[0].get("id"):
        lost["id of a tool call"] += 1
    return {"from": "function_call", "value": json.dumps(call, ensure_ascii=False), **weight}
