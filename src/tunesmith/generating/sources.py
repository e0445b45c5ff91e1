"""Files a generator works from: lists of questions, texts, documents cut into chunks. Knows no generator.

Nothing is passed over in silence: a file or row that cannot be used is yielded as Excluded with its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.errors import DataError, RecipeError
from tunesmith.generating.lineage import Lineage
from tunesmith.types import Conversation, Excluded

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
HTML_SUFFIXES = (".html", ".htm")
ROW_SUFFIXES = (".jsonl", ".json")
LINEAGE_KEY = "made_from"
_QUESTION_KEYS = ("question", "instruction", "prompt", "input", "text", "问题")
_TEXT_KEYS = ("text", "content", "body", "document", "output", "文本")
_NOT_SHOWN = {"script", "style", "head", "noscript", "template"}
_BLOCKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "article", "table"}


@dataclass(frozen=True)
class Text:
    """A text with its place: the file's name under the folder that was named, and the line or first character."""

    text: str
    name: str
    where: str
    lineage: Lineage = field(default_factory=Lineage)


@dataclass(frozen=True)
class Chunk:
    """Characters [start, end) of a document."""

    text: str
    name: str
    number: int
    start: int
    end: int
    lineage: Lineage = field(default_factory=Lineage)


def read_questions(files: Mapping[str, Path], *, generator: str) -> Iterator[Text | Excluded]:
    """One question a line of a text file, or one a row ({"question": ...}) of a JSONL or JSON file."""
    yield from _read(files, generator, keys=_QUESTION_KEYS, by_line=True)


def read_texts(files: Mapping[str, Path], *, generator: str) -> Iterator[Text | Excluded]:
    """One text a file (.txt, .md, .rst, .html), or one a row ({"text": ...}) of a JSONL or JSON file."""
    yield from _read(files, generator, keys=_TEXT_KEYS, by_line=False)


def chunks_of(text: Text, *, characters: int, overlap: int) -> list[Chunk]:
    """The text in pieces of at most `characters`, each sharing `overlap` with the one before. An end is moved back to
    the last paragraph, sentence or word in the piece's last quarter, so that few sentences are cut."""
    step = characters - overlap
    chunks: list[Chunk] = []
    start = 0
    while True:
        end = min(start + characters, len(text.text))
        if end < len(text.text):
            end = _good_end(text.text, start + max(characters * 3 // 4, overlap + 1), end)
        if text.text[start:end].strip():
            chunks.append(Chunk(text.text[start:end].strip(), text.name, len(chunks), start, end, text.lineage))
        if end >= len(text.text):
            return chunks
        start = max(start + 1, min(start + step, end))


def _read(
    files: Mapping[str, Path], generator: str, *, keys: tuple[str, ...], by_line: bool
) -> Iterator[Text | Excluded]:
    if not files:
        raise RecipeError(
            f"{generator} works from files, and none is named",
            where="recipe.generate.files",
            hint="name a file or a folder",
        )
    for name, place in files.items():
        paths = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in paths:
            shown = f"{name.rstrip('/')}/{path.relative_to(place).as_posix()}" if place.is_dir() else Path(name).name
            yield from _read_file(path, shown, keys, by_line)


def _read_file(path: Path, name: str, keys: tuple[str, ...], by_line: bool) -> Iterator[Text | Excluded]:
    suffix = path.suffix.lower()
    if suffix not in (*TEXT_SUFFIXES, *HTML_SUFFIXES, *ROW_SUFFIXES):
        known = " ".join((*TEXT_SUFFIXES, *HTML_SUFFIXES, *ROW_SUFFIXES))
        yield Excluded(reason="unknown_format", detail=f"found {suffix or 'no ending'}, expected {known}", where=name)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield Excluded(reason="not_utf8", detail=f"byte {error.start} is not UTF-8", where=name)
        return
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=name) from error
    if suffix in ROW_SUFFIXES:
        yield from _read_rows(text, suffix, name, keys)
        return
    body = _visible_text(text) if suffix in HTML_SUFFIXES else text.replace("\r\n", "\n")
    if by_line:
        for number, line in enumerate(body.splitlines(), 1):
            if line.strip():
                yield Text(line.strip(), name, f"{name}:{number}")
    elif body.strip():
        yield Text(body.strip(), name, name)
    else:
        yield Excluded(reason="empty", detail="the file holds no text", where=name)


def _read_rows(text: str, suffix: str, name: str, keys: tuple[str, ...]) -> Iterator[Text | Excluded]:
    values: list[tuple[str, Any]] = []
    if suffix == ".json" and text.lstrip().startswith("["):
        try:
            values = [(f"{name}[{number}]", value) for number, value in enumerate(json.loads(text))]
        except ValueError as error:
            raise DataError(f"this is not JSON: {error}", where=name, hint="one object a line also works") from None
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                values.append((f"{name}:{number}", json.loads(line)))
            except ValueError as error:
                yield Excluded(reason="bad_row", detail=f"this line is not JSON: {error}", where=f"{name}:{number}")
    for where, value in values:
        found = value if isinstance(value, str) else _field(value, keys)
        if found is None:
            yield Excluded(reason="bad_row", detail=f"expected a text under {', '.join(keys)}", where=where, raw=value)
        elif not found.strip():
            yield Excluded(reason="empty", detail="the text is empty", where=where, raw=value)
        else:
            try:
                yield Text(found.strip(), name, where, _lineage(value))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                yield Excluded(
                    reason="bad_row", detail=f"{LINEAGE_KEY}.{place}: {first['msg']}", where=where, raw=value
                )


def _lineage(value: Any) -> Lineage:
    """Of a row's "made_from"; of a conversation; else the licence that the row states."""
    if not isinstance(value, dict):
        return Lineage()
    if value.get(LINEAGE_KEY) is not None:
        return Lineage.model_validate(value[LINEAGE_KEY])
    if isinstance(value.get("messages"), list):
        known = {name: value[name] for name in Conversation.model_fields if name in value}
        return Lineage.of(Conversation.model_validate(known))
    licence = value.get("licence") or value.get("license")
    return Lineage(licence=licence if isinstance(licence, str) else None)


def _field(value: Any, keys: tuple[str, ...]) -> str | None:
    if not isinstance(value, dict):
        return None
    messages = value.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return next((m["content"] for m in reversed(messages) if m.get("role") == "user"), None)
    found = next((value[key] for key in keys if isinstance(value.get(key), str)), None)
    extra = value.get("input")
    if found is not None and "instruction" in value and found == value["instruction"] and isinstance(extra, str):
        return f"{found}\n\n{extra}".strip()
    return found


def _good_end(text: str, earliest: int, end: int) -> int:
    for marks in ("\n\n", "\n", "。", "！", "？", ". ", "! ", "? ", " "):
        at = text.rfind(marks, earliest, end)
        if at != -1:
            return at + len(marks)
    return end


class _Visible(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in _NOT_SHOWN
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _NOT_SHOWN))
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _visible_text(page: str) -> str:
    reader = _Visible()
    reader.feed(page)
    reader.close()
    lines = [" ".join(line.split()) for line in "".join(reader.parts).splitlines()]
    return "\n".join(line for line in lines if line)
