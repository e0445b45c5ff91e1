"""One chat template: renders messages to text, and says which characters of the text came from which message.

The text is what transformers' `apply_chat_template` gives, by the same sandboxed jinja environment. Spans are found by
rendering a second time with every field wrapped in private-use marks: where the marks, taken out again, leave the very
same text, their places are exact, whatever the template trims, moves, folds or repeats. Where they do not (a template
that looks inside the text), nothing is guessed: `exact` is False and the caller takes the slower road.
Knows nothing of tokens, loss masks or models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2.exceptions
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.errors import DataError, ModelError
from tunesmith.types import Message

_MARKS = "".join(chr(0x10FE00 + i) for i in range(64))  # private use, plane 16
_ESCAPED_MARK = "\\U0010fe"  # how repr writes the beginning of each
_HIDDEN = frozenset({"id", "type", "role"})  # strings of a tool call that templates test instead of writing
_RENDER_ERRORS = (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)

FOLD_SYSTEM = """\
{%- if messages and messages[0]['role'] == 'system' and messages[1:] and messages[1]['role'] == 'user' -%}
{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] -%}
{%- endif -%}
"""
"""Put before a template that has no place for a system message: the first user turn then starts with it. It is part of
the template's text, so that every program the exported model meets does the same."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of the text that came from one field of a message."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Located:
    """Rendered text and where the messages are in it.

    spans: in order and disjoint. ends: message -> last character + 1 that certainly came from it (its spans, or an end
    mark whose start was stripped, as with thoughts). exact: False where nothing but the text is known.
    """

    text: str
    spans: tuple[Span, ...] = ()
    ends: Mapping[int, int] = field(default_factory=dict)
    exact: bool = True


def as_template_dict(message: Message) -> dict[str, Any]:
    """The form in which chat templates read a message."""
    written = message.model_dump(exclude_none=True, exclude={"weight"})
    if "reasoning" in written:
        written["reasoning_content"] = written.pop("reasoning")
    return written


class ChatTemplate:
    """A template's source with the variables of its tokenizer (bos_token, eos_token ...)."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        # Every rendering copies the variables, so those whose name the template never writes stay out.
        self._variables: dict[str, Any] = {name: value for name, value in variables.items() if name in source}
        try:  # messages no template can render still compile it
            self._render([{"role": "user", "content": "?"}], False)
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise ModelError(f"the chat template is no valid jinja: line {error.lineno}: {error.message}") from error
        except _RENDER_ERRORS:
            return  # it compiles; whether it renders what matters is asked when it matters

    @property
    def variables(self) -> Mapping[str, Any]:
        """The tokenizer's variables that the template names."""
        return self._variables

    @property
    def reads_clock(self) -> bool:
        """Whether the text may differ from day to day."""
        return "strftime_now" in self.source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text. Raises DataError with the template's own words where it refuses the messages."""
        return self._render_or_refuse(messages, [as_template_dict(each) for each in messages], add_generation_prompt)

    def _render_or_refuse(
        self, messages: Sequence[Message], dicts: list[dict[str, Any]], add_generation_prompt: bool
    ) -> str:
        try:
            return self._render(dicts, add_generation_prompt)
        except _RENDER_ERRORS as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(f"the chat template refuses this conversation ({roles}): {error}") from error

    def locate(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> Located:
        """The text with spans. Raises DataError as render does, and where the template leaves out a message's content."""
        dicts = [as_template_dict(message) for message in messages]
        text = self._render_or_refuse(messages, dicts, add_generation_prompt)
        marks = _Marks(dicts)
        marked = [marks.mark(index, message) for index, message in enumerate(dicts)]
        try:
            located = marks.read(self._render(marked, add_generation_prompt), text)
        except _RENDER_ERRORS:  # the template tests the very text, and the marks made it refuse
            located = Located(text, exact=False)
        _check_nothing_is_left_out(messages, located)
        return located

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=self.source,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return rendered[0]


class _Marks:
    """Wraps fields in marks, and reads them back from a rendered text."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        begin, end, close = _unused(messages)
        self._begin, self._end, self._close = begin, end, close
        self._pattern = re.compile(f"([{begin}{end}])([0-9]+){close}")
        self._fields: list[tuple[int, str, str]] = []  # message, leading and trailing white space outside the marks

    def mark(self, index: int, message: dict[str, Any]) -> dict[str, Any]:
        marked = dict(message)
        for name in ("content", "reasoning_content"):
            if name in marked:
                marked[name] = self._wrap(index, marked[name])
        if "tool_calls" in marked:
            marked["tool_calls"] = self._wrap_values(index, marked["tool_calls"])
        return marked

    def read(self, marked: str, text: str) -> Located:
        """Spans in `text`; inexact where taking the marks out of `marked` does not give it."""
        pieces: list[str] = []
        length = position = 0
        opened: dict[int, int] = {}
        ends: dict[int, int] = {}
        spans: list[Span] = []
        for match in self._pattern.finditer(marked):
            pieces.append(marked[position : match.start()])
            length += match.start() - position
            position = match.end()
            number = int(match.group(2))
            message, lead, trail = self._fields[number]
            if match.group(1) == self._begin:
                if number in opened:
                    return Located(text, exact=False)
                opened[number] = length - len(lead) if text.endswith(lead, 0, length) else length
            else:
                end = length + len(trail) if text.startswith(trail, length) else length
                ends[message] = max(end, ends.get(message, 0))
                if number in opened:
                    spans.append(Span(message, opened.pop(number), end))
        pieces.append(marked[position:])
        if "".join(pieces) != text or opened:
            return Located(text, exact=False)
        spans.sort(key=lambda span: span.start)
        for index in range(1, len(spans)):  # white space between two fields can match both: the first one keeps it
            if spans[index].start < spans[index - 1].end:
                spans[index] = replace(spans[index], start=min(spans[index - 1].end, spans[index].end))
        return Located(text, tuple(spans), ends)

    def _wrap_values(self, index: int, value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in _HIDDEN else self._wrap(index, value)
        if isinstance(value, list):
            return [self._wrap_values(index, item) for item in value]
        if isinstance(value, dict):
            return {name: self._wrap_values(index, item, name) for name, item in value.items()}
        return value

    def _wrap(self, index: int, text: str) -> str:
        core = text.strip()
        if not core:  # a template may ask whether there is any text: marks would change the answer
            return text
        lead = text[: len(text) - len(text.lstrip())]
        trail = text[len(text.rstrip()) :]
        number = len(self._fields)
        self._fields.append((index, lead, trail))
        return f"{lead}{self._begin}{number}{self._close}{core}{self._end}{number}{self._close}{trail}"


def _check_nothing_is_left_out(messages: Sequence[Message], located: Located) -> None:
    for index, message in enumerate(messages):
        core = message.content.strip()
        if not core:
            continue
        # An inexact answer says nothing about spans; an assistant's text may be cut there (thoughts), others' not.
        gone = index not in located.ends if located.exact else message.role != "assistant" and core not in located.text
        if gone:
            raise DataError(
                f"the chat template leaves out the text of message {index} ({message.role})",
                hint="choose another with `tokenize.chat_template`, or take the message out",
            )


def _unused(messages: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Three marks that occur in no message."""
    written = repr(messages)  # where a private-use character stands as an escape
    if _ESCAPED_MARK not in written:
        return _MARKS[0], _MARKS[1], _MARKS[2]
    unused = [mark for mark in _MARKS if repr(mark)[1:-1] not in written]
    if len(unused) < 3:
        raise DataError("the text uses up all private characters U+10FE00 to U+10FE3F", hint="remove them from the row")
    return unused[0], unused[1], unused[2]
