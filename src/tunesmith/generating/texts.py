"""Answers that are no rows: one text, a list of texts, a verdict, a transcript of two speakers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tunesmith.generating.parsing import Broken, without_thoughts
from tunesmith.types import Message, Role

_FENCE = re.compile(r"\A```[\w+-]*\n(?P<inside>.*)\n```\Z", re.DOTALL)
_NUMBER = re.compile(r"^[ \t]*(?:#+[ \t]*)?(?:\d+[ \t]*[.):、．]|[-*•])[ \t]*")
_LEAD = re.compile(
    r"\A(?:(?:new |rewritten |created )?(?:instruction|prompt|question|task|translation|answer)|指令|问题|译文|回答|答案)"
    r"\s*[:：]\s*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "「": "」"}
_VERDICT = re.compile(r"\b(yes|no|true|false|equal|not equal)\b|(不相等|不是|相等|是|否)", re.IGNORECASE)
_TRUE = {"yes", "true", "equal", "是", "相等"}
_PEOPLE = ("human", "user", "用户", "人类")
_ASSISTANTS = ("assistant", "ai", "bot", "助手", "机器助手")


def plain_text(text: str) -> str:
    """An answer that is one text, without thoughts, an outer code fence, a label before it and quotes around it."""
    body = without_thoughts(text)
    if (fence := _FENCE.match(body)) and "```" not in fence["inside"]:
        body = fence["inside"].strip()
    body = _LEAD.sub("", body).strip()
    if len(body) > 1 and _QUOTES.get(body[0]) == body[-1] and body[0] not in body[1:-1] and body[-1] not in body[1:-1]:
        body = body[1:-1].strip()
    return body


def list_of_texts(text: str, *, cut: bool, most: int) -> list[str | Broken]:
    """An answer that is a list: a JSON array of strings, or one text a line, numbered or not. The last one of an answer
    that was cut is broken, and so are empty ones and those beyond the `most` that were asked for."""
    body = without_thoughts(text)
    values = _json_strings(body)  # whole where it can be parsed, even if the answer was cut later
    texts = _lines(body) if values is None else values
    found = [each if each else Broken("empty", "this text of the list is empty", text) for each in texts]
    if cut and found and values is None:
        found[-1] = Broken("cut_off", "the answer ended in the middle of this text", str(found[-1]))
    if not found:
        return [Broken("cut_off" if cut and body else "unreadable", "the answer holds no list of texts", text)]
    more = [
        Broken("surplus", f"{most} were asked for, and this is one more", each) if isinstance(each, str) else each
        for each in found[most:]
    ]
    return found[:most] + more


def _lines(body: str) -> list[str]:
    lines = [line for line in body.splitlines() if line.strip() and not line.strip().startswith("```")]
    if any(_NUMBER.match(line) for line in lines):  # a line before the first number is an introduction
        lines = [line for line in lines if _NUMBER.match(line)]
    bare = [_NUMBER.sub("", line).strip().rstrip(",").strip() for line in lines]
    texts = [plain_text(_unwrapped(each)) for each in bare if each]
    return [each for each in texts if each and each not in ("[", "]")]


def _unwrapped(line: str) -> str:
    """A line that is a JSON object with one string in it is that string."""
    try:
        return (_only_text(json.loads(line)) if line.startswith("{") else None) or line
    except (ValueError, RecursionError):
        return line


def verdict(text: str) -> bool | None:
    """The first yes or no of an answer; None where there is none."""
    found = _VERDICT.search(without_thoughts(text))
    return None if found is None else found.group().lower() in _TRUE


def transcript(text: str, *, cut: bool, names: tuple[str, str] | None = None) -> list[Message] | Broken:
    """A dialogue written as `User: ...` and `Assistant: ...`, or as JSON messages. The last turn of a cut answer goes,
    and so does a last turn that nobody answers. Broken where no whole exchange is left, or speakers do not alternate.

    names: of the person who becomes the user and of the one who becomes the assistant, where they have names of their own.
    """
    people, assistants = (_PEOPLE, _ASSISTANTS) if names is None else ((names[0],), (names[1],))
    body = without_thoughts(text)
    turns = _json_turns(body, people, assistants) if body[:1] in "[{" else None
    if turns is None:
        turns = _labelled_turns(body, people, assistants)
    if cut and turns:
        turns.pop()
    if turns and turns[-1].role == "user":
        turns.pop()
    if not turns:
        reason = "cut_off" if cut and body else "unreadable"
        labels = ("User", "Assistant") if names is None else names
        return Broken(reason, f"the answer holds no whole exchange of `{labels[0]}:` and `{labels[1]}:`", text)
    for number, turn in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            return Broken("bad_turns", f"turn {number} is the {turn.role}'s, expected the {expected}'s", text)
        if not turn.content:
            return Broken("empty", f"turn {number} is empty", text)
    return turns


def _labelled_turns(body: str, people: Sequence[str], assistants: Sequence[str]) -> list[Message]:
    labels = list(_speaker((*people, *assistants)).finditer(body))
    ends = [label.start() for label in labels[1:]] + [len(body)] * bool(labels)
    return [
        Message(
            role=_role(label["name"], people),
            content=body[label.end() : end].strip(" \t\n*"),
        )
        for label, end in zip(labels, ends, strict=True)
    ]


@cache
def _speaker(names: tuple[str, ...]) -> re.Pattern[str]:
    """A speaker's label at the start of a line, bold or not, with or without a remark in brackets."""
    one_of = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(
        rf"^[ \t>*#\[]*(?P<name>{one_of})[ \t]*(?:[(（][^)）\n]*[)）][ \t]*)?\**\]?[ \t]*\**[ \t]*[:：]\**[ \t]*",
        re.MULTILINE | re.IGNORECASE,
    )


def _role(name: str, people: Sequence[str]) -> Role:
    return "user" if name.lower() in {each.lower() for each in people} else "assistant"


def _json_turns(body: str, people: Sequence[str], assistants: Sequence[str]) -> list[Message] | None:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((part for part in value.values() if isinstance(part, list)), None)
    if not isinstance(value, list):
        return None
    turns: list[Message] = []
    for item in value:
        if not isinstance(item, dict):
            return None
        asked, answered = _said(item, ("user", *people)), _said(item, ("assistant", *assistants))
        if asked is not None and answered is not None:  # one exchange
            turns.append(Message(role="user", content=asked))
            turns.append(Message(role="assistant", content=answered))
            continue
        role = str(item.get("role") or item.get("from") or item.get("name") or "")
        content = item.get("content") or item.get("value") or item.get("text")
        if not role or not isinstance(content, str):
            return None
        turns.append(Message(role=_role(role, (*_PEOPLE, *people)), content=content.strip()))
    return turns


def _said(item: Mapping[str, Any], names: Sequence[str]) -> str | None:
    found = next((item[name] for name in names if isinstance(item.get(name), str)), None)
    return None if found is None else found.strip()


def _json_strings(body: str) -> list[str] | None:
    start, end = body.find("["), body.rfind("]")
    if start == -1 or end < start:
        return None
    try:
        value: Any = json.loads(body[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        return None
    texts = [_only_text(item) for item in value] if isinstance(value, list) else []
    found = [text.strip() for text in texts if text is not None]
    return found if found and len(found) == len(texts) else None


def _only_text(value: Any) -> str | None:
    """A string, or an object's only string: teachers write {"question": ...} where a plain text was asked for."""
    if isinstance(value, dict):
        inner = [each for each in value.values() if isinstance(each, str)]
        value = inner[0] if len(inner) == 1 else None
    return value if isinstance(value, str) else None
