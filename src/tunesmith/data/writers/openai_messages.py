"""OpenAI messages: holds everything a conversation has, its `tools` at the top. Preferences as prompt, chosen, rejected; labels as in KTO."""

from __future__ import annotations

from typing import Any

from tunesmith.data.writers.cells import Tally, common, with_tools
from tunesmith.types import Conversation, Document, Example, Labelled, Message


def row(example: Example, _lost: Tally) -> dict[str, Any]:
    """One example as its row."""
    shared = with_tools(common(example))
    if isinstance(example, Document):
        return {"text": example.text, **shared}
    if isinstance(example, Conversation):
        return {"messages": [turn(message) for message in example.messages], **shared}
    prompt = [turn(message) for message in example.prompt]
    if isinstance(example, Labelled):
        return {"prompt": prompt, "completion": [_said(example.reply)], "label": example.desirable, **shared}
    scores = {f"score_{side}": value for side, value in example.scores.items()}
    answers = {"chosen": [_said(example.chosen)], "rejected": [_said(example.rejected)]}
    return {"prompt": prompt, **answers, **scores, **shared}


def turn(message: Message) -> dict[str, Any]:
    """One message with OpenAI's names; thoughts as `reasoning_content`."""
    fields = message.model_dump(exclude_none=True)
    if "reasoning" in fields:
        fields["reasoning_content"] = fields.pop("reasoning")
    return fields


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
