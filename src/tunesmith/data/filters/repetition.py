"""Filters of what is said again: the prompt in the reply, sentences in a reply, one digit over and over."""

from __future__ import annotations

import re

from tunesmith.data.filters.parts import instruction_and_input, map_text, shown, text_of
from tunesmith.data.identity import normalise
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import EchoOptions, RepeatedDigitsOptions, RepeatedSentencesOptions
from tunesmith.text.rouge import count_words
from tunesmith.types import Conversation, Message

_FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
# A sentence with the space behind it. No break between a single letter or a digit and its full stop ("J. S.", "1. ").
_SENTENCE = re.compile(
    r".+?(?:(?<![\s.][A-Za-z])(?<!\d)[.!?]+(?=[\s\"')\]]|\Z)[\"')\]]*|[。！？]+[”』」]?|\n|\Z)[ \t]*", re.DOTALL
)


def echo(_options: EchoOptions, _ctx: FilterContext) -> Filter:
    """Reason echo. Self-Instruct drops instances whose output equals the input; the whole prompt counts as well."""

    def judge(row: Conversation) -> Verdict:
        reply = normalise(row.reply or "")
        if not reply:
            return None
        instruction, given = instruction_and_input(row)
        for what, text in (
            ("prompt", row.prompt[-1].content if row.prompt else ""),
            ("instruction", instruction),
            ("input", given),
        ):
            if normalise(text) == reply:
                return "echo", f"the reply is the {what}: {shown(reply)}"
        return None

    return judge


def repeated_sentences(options: RepeatedSentencesOptions, _ctx: FilterContext) -> Filter:
    """Lamini's cleaner: of equal sentences in one reply the first stays. Code blocks are left as they are."""

    def clean(message: Message) -> str:
        if message.role != "assistant":
            return message.content
        seen: set[str] = set()
        pieces = _FENCE.split(message.content)  # odd pieces are code
        kept = [
            piece if number % 2 else _first_of_each(piece, seen, options.min_words)
            for number, piece in enumerate(pieces)
        ]
        text = "".join(kept)
        return text.rstrip() if text != message.content else text

    def judge(row: Conversation) -> Verdict:
        cleaned = map_text(row, clean)
        if cleaned is None or options.action == "clean":
            return cleaned
        lost = len(text_of(row, "reply")) - len(text_of(cleaned, "reply"))
        return "repeated_sentences", f"{lost:,} characters of the reply are repeated sentences"

    return judge


def repeated_digits(options: RepeatedDigitsOptions, _ctx: FilterContext) -> Filter:
    """Reason repeated_digits. FastChat: a digit followed by eight more of it."""
    found = re.compile(rf"(\d)\1{{{options.min_digits - 1},}}")

    def judge(row: Conversation) -> Verdict:
        match = found.search(text_of(row, "all"))
        return ("repeated_digits", f"says {shown(match.group())}") if match else None

    return judge


def _first_of_each(text: str, seen: set[str], min_words: int) -> str:
    kept: list[str] = []
    for sentence in _SENTENCE.findall(text):
        key = normalise(sentence)
        if count_words(key) >= min_words:
            if key in seen:
                continue
            seen.add(key)
        kept.append(sentence)
    return "".join(kept)
