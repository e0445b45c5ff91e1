"""Filters of single rows: each answers None to keep a row, or (reason, what was found and expected).

FILTERS names a builder for each, in the order in which they are asked: (curate section, task) -> filter, or None where
the recipe switches it off. Adding one is a function here, a line in FILTERS and its parameters in the recipe.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for

from tunesmith.data.identity import prompt_key, reply_key
from tunesmith.data.novelty import RougeNoveltyIndex, novelty_text
from tunesmith.protocols import Filter
from tunesmith.recipe import Curate
from tunesmith.registry import Registry
from tunesmith.text.rouge import count_words
from tunesmith.types import Conversation, Task

Verdict = tuple[str, str] | None

FILTERS = Registry(
    "filter",
    {
        "no_reply": "tunesmith.data.filters:no_reply",
        "length": "tunesmith.data.filters:length",
        "blacklist": "tunesmith.data.filters:blacklist",
        "schema": "tunesmith.data.filters:schema",
        "duplicate": "tunesmith.data.filters:duplicate",
    },
)


def build_filters(section: Curate, task: Task) -> list[Filter]:
    """Every filter the recipe switches on, in order. They hold state: build them anew for each pass over the rows."""
    built = (FILTERS.load(name)(section, task) for name in FILTERS)
    return [each for each in built if each is not None]


def no_reply(_section: Curate, _task: Task) -> Filter:
    """Rows that are a prompt alone: there is nothing to learn from and nothing to compare with."""

    def judge(row: Conversation) -> Verdict:
        last = row.messages[-1] if row.messages else None
        if last is None or last.role != "assistant" or not (last.content.strip() or last.tool_calls):
            return "no_reply", "the conversation does not end in a reply"
        return None

    return judge


def length(section: Curate, _task: Task) -> Filter:
    """Prompts (all the user says) and replies outside the bounds, in words; reasons prompt_length and reply_length."""

    def judge(row: Conversation) -> Verdict:
        prompt = count_words(novelty_text(row))
        if not section.min_prompt_words <= prompt <= section.max_prompt_words:
            allowed = f"{section.min_prompt_words} to {section.max_prompt_words}"
            return "prompt_length", f"the prompt has {prompt} words, allowed are {allowed}"
        reply = count_words(row.reply or "")
        calls = bool(row.messages[-1].tool_calls)  # a tool call is an answer without words
        if not (calls or section.min_reply_words <= reply) or reply > section.max_reply_words:
            allowed = f"{section.min_reply_words} to {section.max_reply_words}"
            return "reply_length", f"the reply has {reply} words, allowed are {allowed}"
        return None

    return judge


def blacklist(section: Curate, _task: Task) -> Filter | None:
    """Rows in which the user or the assistant says a listed word or phrase; whole words where the script has them."""
    phrases = [" ".join(phrase.split()) for phrase in section.blacklist if phrase.strip()]
    if not phrases:
        return None
    pattern = re.compile("|".join(_phrase_pattern(phrase) for phrase in phrases), re.IGNORECASE)

    def judge(row: Conversation) -> Verdict:
        for message in row.messages:
            match = pattern.search(message.content) if message.role in ("user", "assistant") else None
            if match:
                return "blacklist", f"the {message.role} says {match.group()!r}"
        return None

    return judge


def schema(section: Curate, task: Task) -> Filter | None:
    """Replies that are no JSON, or JSON that breaks the task's schema."""
    if not section.check_schema or task.output_schema is None:
        return None
    validator = validator_for(task.output_schema)(task.output_schema)

    def judge(row: Conversation) -> Verdict:
        try:
            value: Any = json.loads(row.reply or "")
        except (ValueError, RecursionError) as error:
            return "schema", f"the reply is no JSON: {error}"
        error = best_match(validator.iter_errors(value))
        return None if error is None else ("schema", f"{error.json_path}: {error.message[:300]}")

    return judge


def duplicate(_section: Curate, _task: Task) -> Filter:
    """The first row of a prompt stays. A later one with the same reply is a "duplicate"; with another reply it is a
    "conflicting_reply": two answers to one question teach the model to waver, and the earlier row (a test row, then one
    that a person gave) is the better guess. Compared without case, width and spacing."""
    first: dict[str, Conversation] = {}

    def judge(row: Conversation) -> Verdict:
        earlier = first.setdefault(prompt_key(row), row)
        if earlier is row:
            return None
        if reply_key(row) == reply_key(earlier):
            return "duplicate", f"the same as {earlier.source or earlier.id}"
        return "conflicting_reply", f"another reply to the prompt of {earlier.source or earlier.id}"

    return judge


class Novelty:
    """Training rows whose prompt is near an earlier one: near a test row is "rouge_l_test", near another "rouge_l".

    Holds every test row from the start; each kept row joins. Above `max_similarity` is too near, exactly at it stays.
    """

    def __init__(self, test_rows: list[Conversation], max_similarity: float) -> None:
        self._max_similarity = max_similarity
        self._index = RougeNoveltyIndex()
        self._rows: list[Conversation] = []
        self._num_test = len(test_rows)
        for row in test_rows:
            self._add(row, novelty_text(row))

    def __call__(self, row: Conversation) -> Verdict:
        if self._max_similarity >= 1:
            return None
        text = novelty_text(row)
        near = self._index.nearest_above(text, self._max_similarity)
        if near is None:
            self._add(row, text)
            return None
        score, number = near
        other = self._rows[number]
        reason = "rouge_l_test" if number < self._num_test else "rouge_l"
        return reason, f"ROUGE-L {score:.3f} with {other.source or other.id}, allowed is {self._max_similarity:g}"

    def _add(self, row: Conversation, text: str) -> None:
        self._index.add(text)
        self._rows.append(row)


# Letters of scripts that put spaces between words. Above U+0E00 words are not set apart, or, as in Korean, carry endings.
_SPACED_LETTER = r"[^\W\u0e00-\U0010ffff]"


def _phrase_pattern(phrase: str) -> str:
    body = r"\s+".join(map(re.escape, phrase.split()))
    before = f"(?<!{_SPACED_LETTER})" if re.match(_SPACED_LETTER, phrase[0]) else ""
    after = f"(?!{_SPACED_LETTER})" if re.match(_SPACED_LETTER, phrase[-1]) else ""
    return before + body + after
