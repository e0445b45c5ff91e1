"""Rows of a better and a worse answer: chosen and rejected.

The prompt stands in a field of its own (prompt, question, instruction with input, messages, conversations), or both
answers are whole dialogues and what they begin with alike is the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.readers.fields import BadRow, Fields, Pair, check_turns, is_preference, kind_of, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message, Role

_PROMPTS = ("prompt", "question", "query", "instruction")
_DIALOGUES = ("messages", "conversations", "conversation")
_SCORES = tuple(form.format(side) for side in ("chosen", "rejected") for form in ("score_{}", "{}_score", "{}-rating"))
_MARKS = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")  # the layout of Anthropic's HH dialogues
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    if not is_preference(row):
        return []
    if "rejected_response" in row and "chosen" not in row:
        takes = SYSTEM | {"messages", "rejected_response"}
        return [Reading("messages -> rejected_response", lambda fields: [_last_is_chosen(fields)], takes)]
    worse = "rejected" if "rejected" in row else "reject"
    prompts = [name for name in (*_PROMPTS, *_DIALOGUES) if name in row] or [""]
    return [
        Reading(
            " -> ".join(filter(None, (name, "chosen"))),
            lambda fields, n=name: [_pair(fields, n, worse)],
            SYSTEM | {"chosen", worse, name, *(["input"] if name == "instruction" else []), *_SCORES},
        )
        for name in prompts
    ]


def _pair(fields: Fields, prompt_name: str, worse: str) -> Pair:
    given = _prompt(fields, prompt_name)
    chosen = _answer(fields, "chosen")
    rejected = _answer(fields, worse)
    if len(chosen) > 1 or len(rejected) > 1:
        start = _common_start(chosen, rejected, worse)
        if given and start[-len(given) :] != given:
            detail = f"chosen begins with another prompt than field {prompt_name!r} holds"
            raise BadRow("ambiguous", prompt_name, detail)
        system = given[:1] if given and given[0].role == "system" and start[0].role != "system" else []
        given, chosen, rejected = [*system, *start], chosen[-1:], rejected[-1:]
    if not given:
        raise BadRow("empty_prompt", None, "the row has no prompt, and chosen is no dialogue that begins with one")
    return _checked(fields, given, chosen[0], rejected[0], worse)


def _prompt(fields: Fields, name: str) -> list[Message]:
    if not name:
        return []
    value = fields.take(name)
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _json(value)
    if isinstance(value, list):
        messages = [parse_turn(turn, number) for number, turn in enumerate(value, start=1)]
        return [*system_first(fields), *messages]
    if not isinstance(value, str) or not value.strip():
        state = "is empty" if value in (None, "") or isinstance(value, str) else f"is {kind_of(value)}"
        raise BadRow("empty_prompt", name, f"field {name!r} {state}, expected text or a list of turns")
    if len(_MARKS.findall(value)) > 1:
        return [*system_first(fields), *_marked_turns(value, drop_open=True)]
    given = fields.take_optional_text("input") if name == "instruction" else ""
    prompt = f"{value}\n\n{given}" if given.strip() else value
    return [*system_first(fields), Message(role="user", content=prompt)]


def _answer(fields: Fields, name: str) -> list[Message]:
    """The turns of one side; a text alone is one turn of the assistant."""
    value = fields.take(name)
    if isinstance(value, str) and value.lstrip().startswith(("[{", "{")):
        value = _json(value)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        if not value:
            raise BadRow("empty_reply", name, f"field {name!r} is an empty list")
        return [parse_turn(turn, number) for number, turn in enumerate(value, start=1)]
    if not isinstance(value, str) or not value.strip():
        state = "is empty" if value is None or isinstance(value, str) else f"is {kind_of(value)}"
        raise BadRow("empty_reply", name, f"field {name!r} {state}, expected an answer or a list of turns")
    if len(_MARKS.findall(value)) > 1:
        return _marked_turns(value, drop_open=False)
    return [Message(role="assistant", content=value)]


def _json(value: str) -> Any:
    try:
        return json.loads(value)  # a cell of a table
    except (ValueError, RecursionError):
        return value


def _marked_turns(text: str, *, drop_open: bool) -> list[Message]:
    parts = _MARKS.split(text)[1:]
    turns = [
        Message(role=_ROLES[name], content=body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns[:-1] if drop_open and turns and not turns[-1].content else turns


def _common_start(chosen: Sequence[Message], rejected: Sequence[Message], worse: str) -> list[Message]:
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise BadRow(
            "bad_turns", worse, f"chosen and {worse} part before their last turn, so they answer no common prompt"
        )
    return list(chosen[:-1])


def _last_is_chosen(fields: Fields) -> Pair:
    turns = [parse_turn(turn, number) for number, turn in enumerate(fields.take_list("messages"), start=1)]
    rejected = fields.take_text("rejected_response", empty_reason="empty_reply")
    messages = [*system_first(fields), *turns]
    if messages[-1].role != "assistant":
        raise BadRow("bad_turns", "messages", "the last turn is not the assistant's, so there is no chosen answer")
    worse = Message(role="assistant", content=rejected)
    return _checked(fields, messages[:-1], messages[-1], worse, "rejected_response")


def _checked(fields: Fields, prompt: list[Message], chosen: Message, rejected: Message, worse: str) -> Pair:
    for name, message in (("chosen", chosen), (worse, rejected)):
        if message.role != "assistant":
            raise BadRow("bad_turns", name, f"{name} ends in a turn of the {message.role}, expected the assistant's")
        if message.tool_calls:
            raise BadRow("wrong_type", name, f"{name} is a tool call, expected an answer in words")
        check_turns([*prompt, message])
    if chosen.content == rejected.content:
        raise BadRow("no_preference", worse, "chosen and rejected are the same text")
    return Pair(prompt, chosen.content, rejected.content, _scores(fields))


def _scores(fields: Fields) -> dict[str, float]:
    scores: dict[str, float] = {}
    for side in ("chosen", "rejected"):
        for name in (f"score_{side}", f"{side}_score", f"{side}-rating"):
            value = fields.take(name)
            if value in (None, ""):
                continue
            try:
                scores[side] = float(value)  # a table's cells are text
            except (TypeError, ValueError):
                raise BadRow("wrong_type", name, f"field {name!r} is {str(value)[:40]!r}, expected a number") from None
    return scores


READER = Shape(
    name="preference",
    fields="prompt, chosen, rejected (or chosen and rejected as whole dialogues)",
    names=("prompt", "chosen", "rejected", "reject", "rejected_response"),
    readings=_readings,
)
