"""Filters by who wrote a row: only some models; classes with conditions and weights as in C-RLFT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

from tunesmith.data.filters.parts import with_metadata
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import ClassesOptions, ModelOptions
from tunesmith.types import Conversation


def model(options: ModelOptions, _ctx: FilterContext) -> Filter:
    """Reason model. OpenChat kept the pages that say `Model: GPT-4`."""
    wanted = _pattern(options.keep)

    def judge(row: Conversation) -> Verdict:
        if wanted.match(writer_of(row)):
            return None
        return "model", f"written by {writer_of(row) or 'nobody named'!r}, wanted is {', '.join(options.keep)}"

    return judge


def classes(options: ClassesOptions, _ctx: FilterContext) -> Filter:
    """Adds source_class, condition and weights (one per message: the class's for the assistant's, else 0) to metadata.
    Wang et al. 2024, OpenChat, section 3.2: the class is the only reward, and the condition tells the model of it.
    Reason class for rows of none, where these are excluded."""
    patterns = [(_pattern(each.match), each) for each in options.classes]

    def judge(row: Conversation) -> Verdict:
        writer = writer_of(row)
        found = next((each for pattern, each in patterns if pattern.match(writer)), None)
        if found is None:
            none = (
                "class",
                f"{writer or 'no writer'!r} is of no class: {', '.join(each.name for each in options.classes)}",
            )
            return none if options.unmatched == "exclude" else None
        weights = [found.weight if message.role == "assistant" else 0.0 for message in row.messages]
        return with_metadata(row, source_class=found.name, condition=found.condition or found.name, weights=weights)

    return judge


def writer_of(row: Conversation) -> str:
    """metadata.model, or the row's source ("self_instruct:openai:gpt-x")."""
    named = row.metadata.get("model")
    return named if isinstance(named, str) and named else row.source


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(each) for each in globs) or r"(?!)", re.IGNORECASE)
