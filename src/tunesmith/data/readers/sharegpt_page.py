"""Conversations of saved ShareGPT pages: `items` of from and value, the value of an answer being HTML; the model's name.

What a page shows before the first question and after the last answer is cut, and `turns_cut` in the metadata says how
many turns that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.pages.markdown import html_to_markdown, is_html, strip_page_marks
from tunesmith.data.readers.fields import BadRow, Fields
from tunesmith.data.readers.readings import Reading
from tunesmith.data.readers.shape import Shape
from tunesmith.data.readers.turns import parse_turn
from tunesmith.types import Message


def _readings(row: Mapping[str, Any]) -> list[Reading]:
    items = row.get("items")
    if not isinstance(items, list):
        return []
    return [Reading("items", lambda fields: [_dialogue(fields)], frozenset({"items", "model", "avatarUrl"}))]


def _dialogue(fields: Fields) -> list[Message]:
    turns = [_turn(item, number) for number, item in enumerate(fields.take_list("items"), start=1)]
    fields.take("avatarUrl")  # the picture of the person who shared it is no part of the conversation
    model = fields.take_optional_text("model").strip()
    if model:
        fields.notes["model"] = model.split(":", 1)[-1].strip() if model.lower().startswith("model:") else model
    start = next((place for place, turn in enumerate(turns) if turn.role in ("user", "system")), len(turns))
    end = next((place + 1 for place in reversed(range(len(turns))) if turns[place].role == "assistant"), 0)
    kept = turns[start:end]
    if len(kept) < 2:
        raise BadRow(
            "too_short", "items", f"of {len(turns)} turns {len(kept)} are left, expected a question and its answer"
        )
    if len(kept) < len(turns):
        fields.notes["turns_cut"] = len(turns) - len(kept)
    return kept


def _turn(item: Any, number: int) -> Message:
    message = parse_turn(item, number)
    return message.model_copy(update={"content": page_text(message.role, message.content)})


def page_text(role: str, text: str) -> str:
    """Markdown of one turn. A question is what a person typed, HTML only where the page itself wrapped it."""
    wrapped = text.lstrip().startswith(("<p>", '<div class="')) and text.rstrip().endswith(("</p>", "</div>"))
    if wrapped if role == "user" else is_html(text):
        return html_to_markdown(text)
    return strip_page_marks(text)


READER = Shape(
    name="sharegpt_page",
    fields="a saved ShareGPT page (items of from and value)",
    names=("items",),
    readings=_readings,
)
