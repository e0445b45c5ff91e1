"""Which text of a row a filter reads, and rows with other texts. Knows no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from tunesmith.recipe.filters import Part
from tunesmith.types import Conversation, Message


def text_of(row: Conversation, part: Part) -> str:
    """Everything of that part, messages joined by a line break."""
    match part:
        case "instruction":
            return instruction_and_input(row)[0]
        case "prompt":
            return "\n".join(message.content for message in row.messages if message.role == "user")
        case "reply":
            return "\n".join(message.content for message in row.messages if message.role == "assistant")
        case "all":
            return "\n".join(message.content for message in row.messages if message.role in ("user", "assistant"))
        case _:
            assert_never(part)


def instruction_and_input(row: Conversation) -> tuple[str, str]:
    """The user's first message, parted where a reader put the input (metadata.input_at), else at its first blank line.
    ("...", "") without an input."""
    first = next((message.content for message in row.messages if message.role == "user"), "")
    at = row.metadata.get("input_at")
    if isinstance(at, int) and 2 <= at < len(first) and first[at - 2 : at] == "\n\n":
        return first[: at - 2].strip(), first[at:]
    instruction, _, given = first.strip().partition("\n\n")
    return instruction, given


def with_messages(row: Conversation, messages: list[Message], **metadata: Any) -> Conversation:
    """The row with these messages and the id that belongs to them; origin and source stay. metadata is added."""
    fields = {name: getattr(row, name) for name in type(row).model_fields}
    return Conversation(**{**fields, "id": "", "messages": messages, "metadata": {**row.metadata, **metadata}})


def with_metadata(row: Conversation, **metadata: Any) -> Conversation:
    """The row with more metadata. The id stays: it is that of the messages."""
    return row.model_copy(update={"metadata": {**row.metadata, **metadata}})


def map_text(row: Conversation, change: Callable[[Message], str]) -> Conversation | None:
    """The row with every message's content changed; None where nothing changed."""
    messages = [message.model_copy(update={"content": change(message)}) for message in row.messages]
    return None if messages == row.messages else with_messages(row, messages)


def shown(text: str, length: int = 80) -> str:
    """A short quotation for a detail."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= length else flat[: length - 3] + "...")


def with_score(row: Conversation, name: str, value: float | None) -> Conversation:
    """The row with a score in metadata.scores; None = it could not be scored, which is not zero."""
    scores = row.metadata.get("scores")
    return with_metadata(row, scores={**(scores if isinstance(scores, dict) else {}), name: value})
