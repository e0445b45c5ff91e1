"""One turn of a dialogue, in the words of ShareGPT (from, value) or of OpenAI (role, content)."""

from __future__ import annotations

import json
from typing import Any, Literal

from tunesmith.data.readers.fields import BadRow, kind_of
from tunesmith.errors import nearest
from tunesmith.types import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_CALLS = ("function_call", "tool_call")  # a ShareGPT turn that is a call, its value the JSON of it
_WEIGHTS = ("weight", "loss_weight", "train", "training", "loss")
"""How files say whether a turn is learnt: OpenAI and older axolotl, LLaMA-Factory, axolotl (two), ms-swift."""
_DETAILS = ("train_detail", "training_detail")  # axolotl: which characters of a turn are learnt
_OF_WEIGHT = frozenset((*_WEIGHTS, *_DETAILS))


def parse_turn(turn: Any, number: int) -> Message:
    """A message out of turn `number` (from 1). BadRow names the turn and what is wrong with it."""
    place = f"turn {number}"
    if not isinstance(turn, dict):
        raise BadRow("wrong_type", place, f"{place} is {kind_of(turn)}, expected an object with a role and its text")
    role_name = turn.get("from", turn.get("role"))
    if not isinstance(role_name, str):
        fields = ", ".join(turn) or "nothing"
        raise BadRow("missing_field", place, f"{place} has no role ('from' or 'role'); it has: {fields}")
    if role_name in _CALLS:
        message = _call(turn.get("value", turn.get("content")), place)
        return message.model_copy(update={"weight": _weight(turn, "assistant", place)})
    role = ROLES.get(role_name.strip().lower())
    if role is None:
        close = nearest(role_name, ROLES)
        suggestion = f"did you mean {close!r}?" if close else f"expected one of {', '.join(ROLES)}"
        raise BadRow("bad_turns", place, f"{place} has the unknown role {role_name!r}; {suggestion}")
    calls = _tool_calls(turn.get("tool_calls"), place)
    if calls is None and turn.get("function_call"):  # the form before tool calls
        calls = _call(turn["function_call"], place).tool_calls
    reasoning = turn.get("reasoning", turn.get("reasoning_content"))
    return Message(
        role=role,
        content=_content(turn, place, may_be_missing=bool(calls)),
        reasoning=reasoning or None,
        tool_calls=calls,
        tool_call_id=turn.get("tool_call_id"),
        name=turn.get("name"),
        weight=_weight(turn, role, place),
    )


def _weight(turn: dict[str, Any], role: Role, place: str) -> Literal[0] | None:
    """0 for a turn of the assistant that is not to be learnt, else None: 1 is what it counts anyway."""
    if _OF_WEIGHT.isdisjoint(turn):
        return None
    if any(turn.get(name) for name in _DETAILS):
        raise BadRow(
            "bad_value", place, f"{place} has parts that are not to be learnt; a turn is learnt whole or not at all"
        )
    said = {name: turn[name] for name in _WEIGHTS if turn.get(name) is not None}
    if not isinstance(said.get("loss", False), bool):  # a measured loss, not a flag
        del said["loss"]
    for name, value in said.items():
        if isinstance(value, str | list | dict) or value not in (0, 1):
            problem = f"{place} has {name} {value!r}; a turn is learnt whole (1, true) or not at all (0, false)"
            raise BadRow("bad_value", place, problem)
        if value and role != "assistant":
            problem = f"{place} has {name} {value!r}, and a turn of the {role} is never learnt: take the field out"
            raise BadRow("bad_value", place, problem)
    if len({bool(value) for value in said.values()}) > 1:
        shown = " and ".join(f"{name} {value!r}" for name, value in said.items())
        raise BadRow("bad_value", place, f"{place} has {shown}, which contradict each other")
    return 0 if role == "assistant" and said and not any(said.values()) else None


def _content(turn: dict[str, Any], place: str, *, may_be_missing: bool) -> str:
    name = "value" if "value" in turn else "content"
    content = turn.get(name)
    if content is None:
        if may_be_missing:
            return ""
        state = "null" if name in turn else "missing"
        raise BadRow("missing_field" if state == "missing" else "wrong_type", place, f"the text of {place} is {state}")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("wrong_type", place, f"the text of {place} is {kind_of(content)}, expected text")
    parts: list[str] = []
    for part in content:
        kind = part.get("type", "nothing") if isinstance(part, dict) else kind_of(part)
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise BadRow("wrong_type", place, f"{place} has a part of type {kind!r}, and only text can be learnt from")
        parts.append(text)
    return "\n".join(parts)


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]] | None:
    if isinstance(calls, str):  # a cell of a table
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError):
            raise BadRow("wrong_type", place, f"the tool_calls of {place} are text that is no JSON") from None
    if not calls:
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow("wrong_type", place, f"the tool_calls of {place} are {kind_of(calls)}, expected a list of objects")
    return calls


def _call(value: Any, place: str) -> Message:
    try:
        call = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadRow("wrong_type", place, f"{place} is a function call, but its value is no JSON: {error}") from None
    if not isinstance(call, dict) or "name" not in call:
        raise BadRow("wrong_type", place, f"{place} is a function call, expected an object with name and arguments")
    return Message(role="assistant", tool_calls=[{"type": "function", "function": call}])
