"""Pairs of input and output: how a conversation becomes one to show, and how a shown one is written.

A reply that is a JSON object is shown as JSON inside JSON, not as a quoted string: small models break the quoting.
Written back, it gets the spacing and key order that the examples have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.types import Conversation

_STYLES: tuple[Callable[[Any], str], ...] = (
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    lambda value: json.dumps(value, ensure_ascii=False, indent=4),
)


@dataclass(frozen=True)
class Example:
    """One exchange, with the conversation it comes from."""

    input: str
    output: str
    conversation: Conversation

    def line(self) -> str:
        """The example as one JSON line."""
        value = _json_object(self.output)
        shown: dict[str, Any] = {"input": self.input, "output": self.output if value is None else value}
        return json.dumps(shown, ensure_ascii=False)


def example_of(conversation: Conversation) -> Example | None:
    """The first exchange of a conversation, which stands without context; None where there is no whole one."""
    turns = [message for message in conversation.messages if message.role != "system"]
    if len(turns) < 2 or turns[0].role != "user" or turns[1].role != "assistant":
        return None
    if not turns[0].content.strip() or not turns[1].content.strip():
        return None
    return Example(turns[0].content, turns[1].content, conversation)


class ReplyStyle:
    """How replies that are JSON objects are written, learnt from examples; without any, json.dumps's own way."""

    def __init__(self, examples: Sequence[Example]) -> None:
        values = [
            (example.output, value) for example in examples if (value := _json_object(example.output)) is not None
        ]
        fits = [sum(style(value) == text.strip() for text, value in values) for style in _STYLES]
        self._style = _STYLES[fits.index(max(fits))]
        self._order = {name: place for place, name in enumerate(values[0][1])} if values else {}

    def write(self, output: Any) -> str:
        """Text of an output as a parser found it: a string stays as it is, a JSON value is written in this style."""
        if isinstance(output, str):
            value = _json_object(output)
            return output.strip() if value is None or not self._order else self._style(self._ordered(value))
        if isinstance(output, dict):
            return self._style(self._ordered(output))
        return "" if output is None else self._style(output)

    def _ordered(self, value: Mapping[str, Any]) -> dict[str, Any]:
        last = len(self._order)
        return dict(sorted(value.items(), key=lambda item: self._order.get(item[0], last)))


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
