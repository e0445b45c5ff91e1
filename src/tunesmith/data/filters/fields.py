"""The filters that the plain fields of `curate` switch on. They see every row, test rows too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for

from tunesmith.data.filters.phrases import PhraseFinder
from tunesmith.data.identity import prompt_and_reply_keys
from tunesmith.data.keys import first_equal, keys_array
from tunesmith.data.novelty import novelty_text
from tunesmith.data.rows import map_rows
from tunesmith.protocols import Filter, Verdict
from tunesmith.recipe import Curate
from tunesmith.text.rouge import count_words
from tunesmith.types import Conversation, Task


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
    if not any(phrase.strip() for phrase in section.blacklist):
        return None
    phrases = PhraseFinder(section.blacklist)

    def judge(row: Conversation) -> Verdict:
        for message in row.messages:
            match = phrases.search(message.content) if message.role in ("user", "assistant") else None
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


class Duplicate:
    """The first row of a prompt stays. A later one with the same reply is a "duplicate"; with another reply it is a
    "conflicting_reply": two answers to one question teach the model to waver, and the earlier row (a test row, then one
    that a person gave) is the better guess. Compared without case, width and spacing. Holds 32 bytes per row."""

    def judge_all(self, rows: Sequence[Conversation]) -> Iterator[Verdict]:
        keys = keys_array(chain.from_iterable(map_rows(prompt_and_reply_keys, rows)), 16).reshape(-1, 4)
        first = first_equal(keys[:, :2])
        for place, earlier in enumerate(first.tolist()):
            if earlier == place:
                yield None
                continue
            name = rows[earlier].place
            if (keys[place, 2:] == keys[earlier, 2:]).all():
                yield "duplicate", f"the same as {name}"
            else:
                yield "conflicting_reply", f"another reply to the prompt of {name}"
