"""Rows of any kind as texts: what was asked, what was answered, and text that is safe to show.

Owns what "prompt" and "reply" mean in statistics. The texts of rows are untrusted: `visible` takes their power over a
terminal and over the direction of a line, and leaves their words.
"""

from __future__ import annotations

import re

from tunesmith.types import Conversation, Document, Example, Labelled, Message, Preference

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|[\U000e0000-\U000e007f]"
)
_JOINERS = "\u200c\u200d"  # needed by Persian, Indic scripts and emoji; they move nothing


def visible(text: str) -> str:
    """The text with control, direction and other invisible characters written out, as in ‹U+202E›. Tabs and line breaks
    stay; a carriage return before a line break goes."""
    return _CONTROLS.sub(_named, text.replace("\r\n", "\n"))


def _named(match: re.Match[str]) -> str:
    character = match[0]
    return character if character in _JOINERS else f"‹U+{ord(character):04X}›"


def encodable(text: str) -> str:
    """The text with halves of surrogates (JSON can hold them, UTF-8 cannot) replaced, for code that takes only real text."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def shortened(text: str, length: int) -> tuple[str, int]:
    """(the beginning of the text, how many characters are left out)."""
    return (text, 0) if len(text) <= length else (text[:length], len(text) - length)


def one_line(text: str, length: int) -> str:
    """The beginning of a text on one line, safe to show."""
    flat = visible(" ".join(text[: 4 * length].split()))
    return flat if len(flat) <= length and len(text) <= 4 * length else flat[: length - 1] + "…"


def messages_of(row: Example) -> list[Message]:
    """The row as a conversation; of a preference the chosen answer, of a document its text as the assistant's."""
    if isinstance(row, Conversation):
        return row.messages
    if isinstance(row, Document):
        return [Message(role="assistant", content=row.text)]
    reply = row.chosen if isinstance(row, Preference) else row.reply
    return [*row.prompt, Message(role="assistant", content=reply)]


def prompt_of(row: Example) -> str:
    """What was asked: all before the last reply, without the system message. "" of a document."""
    if isinstance(row, Document):
        return ""
    return "\n".join(message.content for message in row.prompt if message.role != "system")


def instruction_of(row: Example) -> str:
    """The first message of the user. "" of a document."""
    if isinstance(row, Document):
        return ""
    return next((message.content for message in row.prompt if message.role == "user"), "")


def reply_of(row: Example) -> str | None:
    """The last answer (of a preference the chosen one, of a document its text); None where there is none."""
    if isinstance(row, Document):
        return row.text
    return row.chosen if isinstance(row, Preference) else row.reply


def whole_of(row: Example) -> str:
    """Everything two rows share that say the same."""
    parts = [f"{message.role}: {message.content}" for message in messages_of(row) if message.role != "system"]
    if isinstance(row, Preference):
        parts.append(row.rejected)
    if isinstance(row, Labelled):
        parts.append(str(row.desirable))
    return "\n".join(parts)
