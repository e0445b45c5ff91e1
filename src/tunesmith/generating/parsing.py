"""Rows out of a teacher's answer. Small models add prose, fences and numbers, forget quotes and stop half way; every
piece of the answer that looks like a row ends as a row or as a Broken with its reason, none is lost.

Understood: JSON objects (one a line, numbered, in an array, in an object, over several lines), and where there is none
at all, labelled blocks (`Input: ... Output: ...`, with or without ###, English or Chinese).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_INPUT_KEYS = ("input", "instruction", "prompt", "question", "user", "输入", "问题")
_OUTPUT_KEYS = ("output", "response", "answer", "completion", "reply", "assistant", "输出", "回答")
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_LINE_OBJECT = re.compile(r"^[ \t]*(?:\d+[.):、]\s*|[-*]\s+)?\{", re.MULTILINE)
_LABEL = re.compile(
    r"^[ \t#>*]*(?:\d+[.):、]?\s*)?(?:example\s*\d*\s*)?(?:new\s+)?\**"
    r"(?P<name>input|instruction|question|user|output|response|answer|assistant|输入|问题|输出|回答)"
    r"\s*\d*\**\s*[:：]\**",
    re.MULTILINE | re.IGNORECASE,
)
_WRAPPER = re.compile(r'\{\s*"[^"]*"\s*:\s*\[\s*(?=\{)')
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Row:
    """A row as the teacher wrote it; values are strings or any other JSON value."""

    input: Any
    output: Any


@dataclass(frozen=True)
class Broken:
    """A piece that is no row. reason: cut_off (the answer ended in it), bad_json, bad_keys, unreadable (the whole answer)."""

    reason: str
    detail: str
    text: str


def parse_rows(text: str, *, cut: bool) -> list[Row | Broken]:
    """The rows of one answer in its order. cut: the answer ended because of its length (finish_reason "length")."""
    body = without_thoughts(text)
    found = list(_objects(body, cut, _row)) if "{" in body else []
    if not any(isinstance(piece, Row) for piece in found):
        found = list(_blocks(body, cut)) or found
    if not found:
        what = "the answer was cut before its first row" if cut and body else "the answer holds no row"
        return [Broken("cut_off" if cut and body else "unreadable", what if body else "the answer is empty", text)]
    return found


def without_thoughts(text: str) -> str:
    """The answer without what a reasoning model thought aloud, in valid Unicode."""
    return _THINKING.sub("", _valid_unicode(text)).strip()


def parse_objects(text: str, *, fields: Mapping[str, tuple[str, ...]], cut: bool) -> list[Row | Broken]:
    """JSON objects with other fields than a row's. fields: name -> keys that may stand for it; all must be there.

    A Row's `input` is then {name: value}, its `output` None.
    """

    def read(value: Any) -> Row | None:
        if not isinstance(value, dict):
            return None
        given = {str(key).strip().lower(): item for key, item in value.items()}
        found = {
            name: next((given[key] for key in (name, *keys) if key in given), None) for name, keys in fields.items()
        }
        return None if None in found.values() else Row(found, None)

    body = without_thoughts(text)
    pieces = list(_objects(body, cut, read)) if "{" in body else []
    if not pieces:
        reason = "cut_off" if cut and body else "unreadable"
        return [Broken(reason, f"expected JSON objects with the keys {', '.join(fields)}", text)]
    return pieces


def within(pieces: Sequence[Row | Broken], most: int) -> list[Row | Broken]:
    """The same pieces, where rows beyond the `most` that were asked for are Broken as surplus: their answers would cost more."""
    kept: list[Row | Broken] = []
    num_rows = 0
    for piece in pieces:
        num_rows += isinstance(piece, Row)
        if isinstance(piece, Row) and num_rows > most:
            text = json.dumps(piece.input, ensure_ascii=False)
            piece = Broken("surplus", f"{most} were asked for, and this is one more", text)
        kept.append(piece)
    return kept


def _objects(body: str, cut: bool, read: Callable[[Any], Row | None]) -> Iterator[Row | Broken]:
    at = body.find("{")
    while at != -1:
        try:
            value, end = _DECODER.raw_decode(body, at)
        except ValueError as error:
            if wrapper := _WRAPPER.match(body, at):  # {"examples": [ ... with a fault somewhere inside
                at = body.find("{", wrapper.end())
                continue
            following = _LINE_OBJECT.search(body, body.find("\n", at)) if "\n" in body[at:] else None
            end = following.start() if following else len(body)
            piece = body[at:end].strip()
            yield _repaired(piece, read) or _broken(piece, cut and following is None, str(error))
        except RecursionError:
            yield Broken("bad_json", "nested too deeply", body[at:])
            return
        else:
            yield from _rows_in(value, body[at:end], read)
        at = body.find("{", end)


def _rows_in(value: Any, text: str, read: Callable[[Any], Row | None]) -> Iterator[Row | Broken]:
    """A row, or the rows of a wrapper such as {"examples": [...]}."""
    row = read(value)
    if row is not None:
        yield row
        return
    inner = [item for part in value.values() if isinstance(part, list) for item in part if isinstance(item, dict)]
    expected = 'expected the keys "input" and "output"' if read is _row else "a key that was asked for is missing"
    if not inner:
        yield Broken("bad_keys", f"{expected}; found {', '.join(map(repr, value))}", text)
    for item in inner:
        yield read(item) or Broken("bad_keys", expected, json.dumps(item, ensure_ascii=False))


def _row(value: Any) -> Row | None:
    """instruction + input is Alpaca's way to write one input in two parts."""
    if not isinstance(value, dict):
        return None
    fields = {str(name).strip().lower(): item for name, item in value.items()}
    asked = [fields[name] for name in _INPUT_KEYS if name in fields]
    answered = [fields[name] for name in _OUTPUT_KEYS if name in fields]
    if not asked or not answered:
        return None
    if "instruction" in fields and isinstance(fields.get("input"), str):
        parts = [str(fields["instruction"]).strip(), fields["input"].strip()]
        return Row("\n\n".join(part for part in parts if part), answered[0])
    return Row(asked[0], answered[0])


def _repaired(piece: str, read: Callable[[Any], Row | None]) -> Row | None:
    """The faults small models make most: a trailing comma, a missing last brace, Python instead of JSON."""
    line = piece.rstrip("`, \t\n")
    bare = re.sub(r",(\s*[}\]])", r"\1", line)
    for candidate in (bare, bare + "}", bare.removesuffix("]").rstrip()):
        try:
            value, end = _DECODER.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if end == len(candidate) and (row := read(value)):
            return row
    try:
        return read(ast.literal_eval(line))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _broken(piece: str, at_end: bool, error: str) -> Broken:
    if at_end:
        return Broken("cut_off", "the answer ended in the middle of this row", piece)
    return Broken("bad_json", error, piece)


def _blocks(body: str, cut: bool) -> Iterator[Row | Broken]:
    labels = list(_LABEL.finditer(body))
    ends = [label.start() for label in labels[1:]] + [len(body)] * bool(labels)
    pieces = [
        (_side(label["name"]), body[label.end() : end].strip(" \t\n#*-`"), body[label.start() : end].strip())
        for label, end in zip(labels, ends, strict=True)
    ]
    at = 0
    while at < len(pieces):
        side, asked, raw = pieces[at]
        if side == "output":
            yield Broken("bad_keys", "an output without an input", raw)
            at += 1
            continue
        extra = at + 1 < len(pieces) and pieces[at + 1][0] == "input" and _is_instruction(raw)
        if extra:  # Instruction: ... Input: ... Output: ...
            at += 1
            asked = "\n\n".join(part for part in (asked, pieces[at][1]) if part)
        if at + 1 >= len(pieces) or pieces[at + 1][0] == "input":
            reason = "cut_off" if cut and at + 1 >= len(pieces) else "bad_keys"
            yield Broken(reason, "an input without an output", raw)
            at += 1
            continue
        answered = pieces[at + 1]
        at += 2
        if cut and at >= len(pieces):
            yield Broken("cut_off", "the answer ended in the middle of this row", f"{raw}\n{answered[2]}")
        else:
            yield Row(asked, re.sub(r"\n+\s*(?:#+\s*)?(?:example\s*)?\d+[.):]?\s*$", "", answered[1], flags=re.I))


def _side(name: str) -> str:
    return "output" if name.lower() in _OUTPUT_KEYS else "input"


def _is_instruction(raw: str) -> bool:
    return "instruction" in raw[:40].lower()


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
