"""Filters by length: words, characters, tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.filters.parts import instruction_and_input, text_of, with_messages
from tunesmith.protocols import Filter, FilterContext, Verdict
from tunesmith.recipe.filters import CharLengthOptions, LengthOptions, TokenLengthOptions
from tunesmith.text.rouge import count_words
from tunesmith.types import Conversation


def length(options: LengthOptions, _ctx: FilterContext) -> Filter:
    """Reasons word_length and char_length. Alpaca: `len(instruction.split()) <= 3 or > 150` is rejected."""

    def judge(row: Conversation) -> Verdict:
        text = text_of(row, options.of)
        words = count_words(text)
        if words < options.min_words or (options.max_words is not None and words > options.max_words):
            return "word_length", f"the {options.of} has {words} words, {_bounds(options.min_words, options.max_words)}"
        if len(text) < options.min_chars or (options.max_chars is not None and len(text) > options.max_chars):
            found = f"the {options.of} has {len(text)} characters"
            return "char_length", f"{found}, {_bounds(options.min_chars, options.max_chars)}"
        return None

    return judge


def char_length(options: CharLengthOptions, _ctx: FilterContext) -> Filter:
    """BELLE's rule: more than 3 characters; fewer than 100 where an input is given, unless the instruction itself holds
    an example: then, as without an input, fewer than 150."""

    def judge(row: Conversation) -> Verdict:
        instruction, given = instruction_and_input(row)
        example = "例" in instruction or "example" in instruction.lower()
        most = options.max_chars_with_input if given.strip() and not example else options.max_chars
        if not options.min_chars <= len(instruction) < most:
            allowed = f"allowed are {options.min_chars} to {most - 1}"
            return "char_length", f"the instruction has {len(instruction)} characters, {allowed}"
        return None

    return judge


class TokenLength:
    """Counts the tokens of all rows at once. Cutting leaves whole turns: it never ends in a prompt without its reply."""

    def __init__(self, options: TokenLengthOptions, ctx: FilterContext) -> None:
        self._options = options
        self._count = ctx.open_counter(options.model)

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        counts = iter(self._count([message.content for row in rows for message in row.messages]))
        return [self._judge(row, [next(counts) for _ in row.messages]) for row in rows]

    def _judge(self, row: Conversation, tokens: list[int]) -> Verdict:
        most = self._options.max_tokens
        if sum(tokens) <= most:
            return None
        if self._options.action == "cut":
            ends = [n for n in range(len(tokens), 1, -1) if row.messages[n - 1].role == "assistant"]
            fitting = next((n for n in ends if sum(tokens[:n]) <= most), None)
            if fitting is not None:
                return with_messages(row, row.messages[:fitting], cut_messages=len(tokens) - fitting)
        return "token_length", f"the row has {sum(tokens):,} tokens, allowed are {most:,}"


def _bounds(least: int, most: int | None) -> str:
    return f"allowed are {least} to {most}" if most is not None else f"allowed are {least} and more"
