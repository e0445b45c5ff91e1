"""A conversation as a text that a person can change in an editor, and back. Nothing is lost on the way.

Each turn stands under a line that names its role:

    === user ===
    Where is my bike?
    === assistant ===
    On its way.

The lines have as many `=` as it takes for no line of a turn to look like one. Conversations with tool calls, names or
weights are shown as JSON lines instead, one message a line. Refuses to know who edits and where the file lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import get_args

from pydantic import ValidationError

from tunesmith.data.readers.fields import BadRow, check_turns
from tunesmith.errors import DataError
from tunesmith.types import Message, Role

_THOUGHTS = "assistant reasoning"
_NAMES = (*get_args(Role), _THOUGHTS)
_PLAIN_FIELDS = frozenset({"role", "content", "reasoning"})
_SHORTEST = 3


class EditForm:
    """The form of one conversation: which of the two, and how long the lines between turns are."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.is_text = all(_is_plain(message) for message in messages)
        texts = [text for message in messages for text in (message.content, message.reasoning or "")]
        longest = max((len(found[1]) for text in texts for found in _any_line().finditer(text)), default=0)
        self._bar = "=" * max(_SHORTEST, longest + 1)

    @property
    def ending(self) -> str:
        """What a file's name should end in, for the editor's colours."""
        return ".md" if self.is_text else ".jsonl"

    def write(self, messages: Sequence[Message]) -> str:
        """The text to edit."""
        if not self.is_text:
            rows = (message.model_dump(exclude_none=True) for message in messages)
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        parts: list[str] = []
        for message in messages:
            if message.reasoning is not None:
                parts.append(f"{self._line(_THOUGHTS)}\n{message.reasoning}\n")
            parts.append(f"{self._line(message.role)}\n{message.content}\n")
        return "".join(parts)

    def read(self, text: str) -> list[Message]:
        """The messages of an edited text. DataError says which line or turn is wrong and what was expected."""
        messages = self._read_text(text) if self.is_text else _read_lines(text)
        if not messages:
            raise DataError("there is no turn left", hint="to take the row out, reject it instead")
        try:
            check_turns(messages)
        except BadRow as bad:
            raise DataError(bad.detail) from None
        if messages[-1].role != "assistant":
            raise DataError(f"the last turn is the {messages[-1].role}'s, expected a reply of the assistant")
        return messages

    def _line(self, name: str) -> str:
        return f"{self._bar} {name} {self._bar}"

    def _read_text(self, text: str) -> list[Message]:
        line = re.compile(rf"^{self._bar} *([A-Za-z ]+?) *{self._bar}[ \t\r]*$")
        parts: list[tuple[str, list[str]]] = []
        lines = text.replace("\r\n", "\n").split("\n")  # some editors write their own line ends
        if lines[-1] == "":
            lines.pop()
        for number, each in enumerate(lines, start=1):
            found = line.match(each)
            if found and found[1].lower() not in _NAMES:
                raise DataError(f"line {number} names the role {found[1]!r}, expected one of {', '.join(_NAMES)}")
            if found:
                parts.append((found[1].lower(), []))
            elif parts:
                parts[-1][1].append(each)
            elif each.strip():
                raise DataError(f"line {number} stands before the first role, expected {self._line('user')!r} above it")
        messages: list[Message] = []
        thoughts: str | None = None
        for name, body in parts:
            content = "\n".join(body)
            if thoughts is not None and name != "assistant":
                raise DataError(f"after the reasoning stands a turn of {name!r}, expected the assistant's")
            if name == _THOUGHTS:
                thoughts = content
                continue
            messages.append(Message.model_validate({"role": name, "content": content, "reasoning": thoughts or None}))
            thoughts = None
        if thoughts is not None:
            raise DataError("the reasoning stands at the end, expected the assistant's turn after it")
        return messages


def _read_lines(text: str) -> list[Message]:
    messages: list[Message] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            messages.append(Message.model_validate(json.loads(line)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise DataError(f"line {number} is no message: field {field!r}: {first['msg']}") from None
        except ValueError as error:
            raise DataError(f"line {number} is no JSON: {error}") from None
    return messages


def _is_plain(message: Message) -> bool:
    fields = {name for name, value in message if value is not None}
    # An empty thought cannot be told from none in the text, nor a turn with a carriage return from an editor's own.
    texts = (message.content, message.reasoning or "")
    return fields <= _PLAIN_FIELDS and message.reasoning != "" and not any("\r" in text for text in texts)


def _any_line() -> re.Pattern[str]:
    return re.compile(r"^(={3,}) *[A-Za-z ]+? *={3,}[ \t\r]*$", re.MULTILINE)
