"""Filters by what is said: listed words, how an instruction begins, refusals, makers' names, spellings of "no input"."""

from __future__ import annotations

import re
import unicodedata

from tunesmith.data.filters.parts import map_text, shown, text_of
from tunesmith.data.filters.phrases import PhraseFinder, any_of, word_list
from tunesmith.errors import RecipeError
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import (
    BadStartOptions,
    BlacklistOptions,
    NoInputOptions,
    ProgramStartOptions,
    RefusalOptions,
    VendorOptions,
)
from tunesmith.types import Conversation, Message


def blacklist(options: BlacklistOptions, _ctx: FilterContext) -> Filter:
    """Reason blacklist. Alpaca's and BELLE's lists name what a text model cannot do: pictures, files, links."""
    lists = options.lists or (() if options.phrases else ("alpaca", "belle"))
    phrases = PhraseFinder([*options.phrases, *(word for name in lists for word in word_list(f"blacklist_{name}"))])

    def judge(row: Conversation) -> Verdict:
        match = phrases.search(text_of(row, options.of))
        return ("blacklist", f"the {options.of} says {match.group()!r}") if match else None

    return judge


def program_start(_options: ProgramStartOptions, _ctx: FilterContext) -> Filter:
    """Self-Instruct drops `instruction.startswith("Write a program")`; the Chinese form is ours."""
    start = re.compile(r"write a program\b|(?:请)?(?:编写|写)(?:一个|一段)?(?:程序|代码)", re.IGNORECASE)

    def judge(row: Conversation) -> Verdict:
        match = start.match(text_of(row, "instruction"))
        return ("program_start", f"the instruction begins {match.group()!r}") if match else None

    return judge


def bad_start(options: BadStartOptions, _ctx: FilterContext) -> Filter:
    """Reasons punctuation_start and, where ASCII is asked for, non_ascii_start."""

    def judge(row: Conversation) -> Verdict:
        instruction = text_of(row, "instruction").lstrip()
        if not instruction:
            return None
        first = instruction[0]
        if unicodedata.category(first)[0] in "PS":
            return "punctuation_start", f"the instruction begins with {first!r}: {shown(instruction)}"
        if not options.allow_non_ascii and not first.isascii():
            return "non_ascii_start", f"the instruction begins with {first!r}: {shown(instruction)}"
        return None

    return judge


def refusal(options: RefusalOptions, _ctx: FilterContext) -> Filter:
    """Reason refusal: an assistant turn that refuses, or calls itself a language model."""
    for pattern in options.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(
                f"{pattern!r} is no regular expression: {error}", where="recipe.curate.filters", hint="escape ( [ . * ?"
            ) from None
    found = any_of([*word_list("refusals_en"), *word_list("refusals_zh"), *options.patterns])

    def judge(row: Conversation) -> Verdict:
        for message in row.messages:
            match = found.search(message.content) if message.role == "assistant" else None
            if match:
                return "refusal", f"the assistant says {shown(match.group())}"
        return None

    return judge


def vendor(options: VendorOptions, _ctx: FilterContext) -> Filter:
    """Reason vendor: the name of a maker of models or of one of its models."""
    allowed = {name.casefold() for name in options.allow}
    phrases = PhraseFinder(name for name in word_list("vendors") if name.casefold() not in allowed)

    def judge(row: Conversation) -> Verdict:
        match = phrases.search(text_of(row, options.of))
        return ("vendor", f"names {match.group()!r}") if match else None

    return judge


_NO_INPUT = re.compile(
    r"""\s*(?:\#*\s*(?:inputs?|输入)\s*[:：]\s*)?
    [<(\[{（【]?\s*(?:no\s*-?_?\s*inputs?(?:\s+(?:is\s+)?(?:required|needed|necessary|provided|given))?
      |n\s*/\s*a|none|null|nil|empty|not\s+applicable|无(?:需)?输入|没有输入|不需要输入|无|空)\s*[>)\]}）】]?\s*[.。]?\s*\Z""",
    re.IGNORECASE | re.VERBOSE,
)


def no_input(_options: NoInputOptions, _ctx: FilterContext) -> Filter:
    """Cuts the placeholder that stands where the input of a user's message would: after its last blank line."""

    def cut(message: Message) -> str:
        head, blank, tail = message.content.rpartition("\n\n")
        return (
            head.rstrip()
            if message.role == "user" and blank and head.strip() and _NO_INPUT.match(tail)
            else message.content
        )

    return lambda row: map_text(row, cut)
