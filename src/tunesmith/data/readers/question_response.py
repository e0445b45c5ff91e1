"""Rows of a question and its answer under any of their usual names; without an answer, a prompt alone.

Prompt and reply may be lists of turns too. A prompt alone is kept as a conversation without a reply: a teacher can answer it, curate excludes it as "no_reply".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.readers.fields import Fields, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message

_PROMPTS = ("question", "prompt", "query", "input")
_REPLIES = ("answer", "response", "completion", "output", "target", "std_answer", "reply")
_PAIRS = {
    ("question", "answer"), ("question", "response"), ("question", "std_answer"), ("prompt", "completion"), ("prompt", "response"),
    ("query", "response"), ("query", "answer"), ("input", "output"), ("input", "target"),
}  # fmt: skip
"""Names that files have together."""


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    prompts = [name for name in _PROMPTS if name in row]
    replies = [name for name in _REPLIES if name in row] if prompts else []
    if not replies:
        return [
            Reading(name, lambda f, name=name: [_prompt(f, name)], SYSTEM | {name}, has_reply=False) for name in prompts
        ]
    return [
        Reading(
            f"{prompt} -> {reply}",
            lambda f, p=prompt, r=reply: [_pair(f, p, r)],
            SYSTEM | {prompt, reply},
            is_main=(prompt, reply) in _PAIRS,
        )
        for prompt in prompts
        for reply in replies
    ]


def _pair(fields: Fields, prompt_name: str, reply_name: str) -> list[Message]:
    prompt = _prompt(fields, prompt_name)
    turns = _turns(fields, reply_name)
    if turns:
        return [*prompt, *turns]
    return [*prompt, Message(role="assistant", content=fields.take_text(reply_name, empty_reason="empty_reply"))]


def _turns(fields: Fields, name: str) -> list[Message]:
    """The turns of a field that holds a list of them rather than text."""
    value = fields.peek(name)
    if not isinstance(value, list) or not value:
        return []
    return [parse_turn(turn, number) for number, turn in enumerate(fields.take_list(name), start=1)]


def _prompt(fields: Fields, name: str) -> list[Message]:
    turns = _turns(fields, name)
    if turns:
        return [*system_first(fields), *turns]
    prompt = fields.take_text(name, empty_reason="empty_prompt")
    return [*system_first(fields), Message(role="user", content=prompt)]


READER = Shape(
    name="question_response",
    fields="question and answer (or prompt and completion, prompt and response, input and output)",
    names=(*_PROMPTS, *_REPLIES),
    readings=_readings,
)
