"""Dialogues inside the fields of an alpaca row, as two of BELLE's sets have them: the history inside `instruction` as
Human: and Assistant: lines, or the whole transcript with the speakers' names inside `output`.

Owns how such text is cut into turns. Refuses to decide whether a file is of this kind: shape.py compares its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

from tunesmith.data.readers.fields import BadRow, Fields, is_labelled, is_preference, system_first
from tunesmith.data.readers.readings import SYSTEM, Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.types import Message, Role

_TAKES = SYSTEM | {"instruction", "input", "output"}
HISTORY = "history in instruction -> output"
TRANSCRIPT = "instruction -> dialogue in output"
_GENERATED_CHAT = "belle_generated_chat"

_USER_NAMES = ("human", "user", "用户", "人类", "客户", "顾客", "问", "q")
_ASSISTANT_NAMES = ("assistant", "ai", "bot", "gpt", "chatgpt", "助手", "助理", "机器人", "客服", "答", "a")
_HISTORY_MARK = re.compile(r"^[ \t]*(Human|User|Assistant|用户|人类|助手)[ \t]*[:：]", re.MULTILINE | re.IGNORECASE)
_SPEAKER = re.compile(r"^[ \t]*\**([^\s:：*][^\n:：*]{0,23}?)\**[ \t]*[:：]\**(?!//)[ \t]*", re.MULTILINE)
_ASKS_TO_WRITE = re.compile(
    r"\b(write|compose|create|generate|make up|continue|translate|rewrite|script|dialog(ue)?|conversation|story)\b"
    r"|写|编|创作|生成|设计|翻译|改写|故事|剧本|虚构",
    re.IGNORECASE,
)


def history_readings(row: Mapping[str, Any]) -> list[Reading]:
    """[the reading as history] where the instruction begins with a marked turn of the user and goes on with the assistant's."""
    text = row.get("instruction")
    if not isinstance(text, str) or "output" not in row:
        return []
    roles = [_role(match[1]) for match in _HISTORY_MARK.finditer(text)]
    starts = _HISTORY_MARK.match(text.lstrip())
    if starts is None or roles[:1] != ["user"] or "assistant" not in roles:
        return []
    return [Reading(HISTORY, lambda fields: [_history(fields)], _TAKES, is_main=True)]


def transcript_readings(row: Mapping[str, Any]) -> list[Reading]:
    """[the reading as transcript] where the output is nothing but what two speakers say in turn."""
    output, instruction = row.get("output"), row.get("instruction")
    if not isinstance(output, str) or not isinstance(instruction, str) or not _SPEAKER.match(output.lstrip()[:40]):
        return []
    speakers = [name for name, _ in _utterances(output)]
    alternate = all(one != other for one, other in pairwise(speakers))
    if len(speakers) < 2 or len(set(speakers)) != 2 or not alternate:
        return []
    # Speech that was asked for ("write a dialogue ...") is an answer; in a file where all rows are so, it is the form.
    written = _ASKS_TO_WRITE.search(instruction) is not None
    special = "weak" if written else "strong"
    return [Reading(TRANSCRIPT, lambda fields: [_transcript(fields)], _TAKES, special=special, form=_GENERATED_CHAT)]


def _role(name: str) -> Role | None:
    plain = name.strip().lower()
    return "user" if plain in _USER_NAMES else "assistant" if plain in _ASSISTANT_NAMES else None


def _history(fields: Fields) -> list[Message]:
    text = fields.take_text("instruction", empty_reason="empty_prompt")
    fields.take_optional_text("input")
    reply = fields.take_text("output", empty_reason="empty_reply")
    parts = _HISTORY_MARK.split(text)[1:]
    turns = [
        Message(role=_role(name) or "user", content=body.strip())
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1].role == "assistant":
        if turns[-1].content:
            raise BadRow(
                "bad_turns", "instruction", "the history ends in a turn of the assistant, so `output` answers nothing"
            )
        turns.pop()
    return [*system_first(fields), *turns, Message(role="assistant", content=reply)]


def _utterances(text: str) -> list[tuple[str, str]]:
    """(speaker, words) one after another; [] where the text does not begin with a speaker."""
    marks = list(_SPEAKER.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return []
    # Only names that speak twice or more, or open the text, are speakers: "Note:" inside a turn is not.
    names = [match[1].strip() for match in marks]
    first, second = names[0], next((name for name in names if name != names[0]), "")
    frequent = {name for name in names if names.count(name) > 1 or name in (first, second)}
    marks = [match for match in marks if match[1].strip() in frequent]
    ends = [*(match.start() for match in marks[1:]), len(text)]
    return [(match[1].strip(), text[match.end() : end].strip()) for match, end in zip(marks, ends, strict=True)]


def _transcript(fields: Fields) -> list[Message]:
    scene = fields.take_text("instruction", empty_reason="empty_prompt")
    given = fields.take_optional_text("input")
    said = _utterances(fields.take_text("output", empty_reason="empty_reply"))
    roles = _roles_of([name for name, _ in said])
    fields.notes["speakers"] = {role: name for name, role in roles.items()}
    start = next(place for place, (name, _) in enumerate(said) if roles[name] == "user")
    end = next(place + 1 for place in reversed(range(len(said))) if roles[said[place][0]] == "assistant")
    if end - start < 2:
        raise BadRow("too_short", "output", "the dialogue holds no question with an answer after it")
    if end - start < len(said):
        fields.notes["turns_cut"] = len(said) - (end - start)
    system = [*system_first(fields), Message(role="system", content=f"{scene}\n\n{given}" if given.strip() else scene)]
    if len(system) == 2:
        system = [Message(role="system", content=f"{system[0].content}\n\n{system[1].content}")]
    return [*system, *(Message(role=roles[name], content=words) for name, words in said[start:end])]


def _roles_of(speakers: list[str]) -> dict[str, Role]:
    """Who is the user: by a known name, else the one who speaks first."""
    first, second = dict.fromkeys(speakers)
    if _role(first) == "assistant" or _role(second) == "user":
        first, second = second, first
    return {first: "user", second: "assistant"}


def _named(readings: Callable[[Mapping[str, Any]], list[Reading]], row: Mapping[str, Any]) -> list[Reading]:
    """The readings where a person named the form: nothing is left to compare rows for."""
    if is_preference(row) or is_labelled(row):
        return []
    return [replace(reading, special="") for reading in readings(row)]


MULTITURN = Shape(
    name="belle_multiturn",
    fields="instruction (Human: and Assistant: lines), output",
    names=("instruction", "output"),
    readings=partial(_named, history_readings),
)
GENERATED_CHAT = Shape(
    name=_GENERATED_CHAT,
    fields="instruction (the scene), output (lines of two named speakers)",
    names=("instruction", "output"),
    readings=partial(_named, transcript_readings),
)
