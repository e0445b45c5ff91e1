"""Alpaca: instruction, input, output, with system and history where an example has them. Has no place for tools."""

from __future__ import annotations

from typing import Any

from tunesmith.data.writers.cells import Tally, Unwritable, common, count_lost, lead
from tunesmith.types import Conversation, Document, Example, Labelled, Message


def row(example: Example, lost: Tally) -> dict[str, Any]:
    """One example as its row."""
    if isinstance(example, Document):
        raise Unwritable("text without an instruction")
    messages = example.prompt if not isinstance(example, Conversation) else example.messages
    if any(message.role == "tool" or message.tool_calls for message in messages):
        raise Unwritable("tool calls")
    if isinstance(example, Conversation) and any(message.weight == 0 for message in messages):
        raise Unwritable("a turn of weight 0")
    count_lost(messages, lost, "reasoning", "name")
    system, turns = lead(messages)
    reply = ""
    if isinstance(example, Conversation):
        if turns[-1].role == "assistant":
            reply, turns = turns[-1].content, turns[:-1]
        elif len(turns) == 1:
            return {**_asked(turns[-1], example), **({"system": system} if system else {}), **common(example)}
        else:
            raise Unwritable("a last turn without a reply")
    if len(turns) % 2 == 0 or any(turn.role != ("user", "assistant")[place % 2] for place, turn in enumerate(turns)):
        raise Unwritable("turns that are not of user and assistant in turn")
    fields = _asked(turns[-1], example)
    if isinstance(example, Conversation):
        fields["output"] = reply
    elif isinstance(example, Labelled):
        fields |= {"output": example.reply, "kto_tag": example.desirable}
    else:
        scores = {f"score_{side}": value for side, value in example.scores.items()}
        fields |= {"chosen": example.chosen, "rejected": example.rejected, **scores}
    if system:
        fields["system"] = system
    if len(turns) > 1:
        if not isinstance(example, Conversation | Labelled):
            raise Unwritable("earlier turns before a preference")
        fields["history"] = [[a.content, b.content] for a, b in zip(turns[:-1:2], turns[1::2], strict=True)]
    return {**fields, **common(example)}


def _asked(turn: Message, example: Example) -> dict[str, Any]:
    """Instruction and input: cut where the reader joined them, as long as the text is still joined there."""
    text, at = turn.content, example.metadata.get("input_at")
    if isinstance(at, int) and 2 < at < len(text) and text[at - 2 : at] == "\n\n":
        return {"instruction": text[: at - 2], "input": text[at:]}
    return {"instruction": text, "input": ""}
