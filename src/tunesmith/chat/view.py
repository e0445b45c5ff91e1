"""Tokens and their loss mask for people: coloured for a terminal, or as plain text. Owns no output: it returns text.

Safe against what the text may hold: control characters and escape sequences are shown by name, never sent to the
terminal, and nothing is read as markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from rich.text import Text
from transformers import PreTrainedTokenizerFast

from tunesmith.types import Rendered

TARGET = "black on green"  # a token the model is trained to write
STOP = "bold white on dark_green"  # the target that ends a turn
MESSAGE = ""  # what a person or the system said
TEMPLATE = "dim"  # what the template put between
_LEGEND = (("target", TARGET), ("stop", STOP), ("message", MESSAGE), ("template", TEMPLATE))
_VISIBLE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}
_LONGEST_CHARACTER = 8  # tokens one character may take: 4 bytes, and joined emoji


def tokens_in_colour(rendered: Rendered, tokenizer: PreTrainedTokenizerFast, *, boundaries: bool = False) -> Text:
    """A legend and the tokens, with the mask as background; `boundaries` puts a bar after each token.

    Tokens of like style that share one character (an emoji of several tokens) are shown together.
    """
    text = Text()
    for label, style in _LEGEND:
        text.append(f" {label} ", style=style)
        text.append(" ")
    text.append("\n\n")
    styles = [_style(rendered, place) for place in range(len(rendered.input_ids))]
    for first, shown in _readable(rendered.input_ids, styles, tokenizer):
        text.append(_visible(shown), style=styles[first])
        if boundaries:
            text.append("|", style="dim red")
    return text


def tokens_in_plain(rendered: Rendered, tokenizer: PreTrainedTokenizerFast) -> str:
    """One line per token: place, id, T for a target (S for one that ends a turn), message index, text."""
    lines = [f"{'place':>6} {'id':>7}  mask  message  text"]
    for place, token in enumerate(rendered.input_ids):
        style = _style(rendered, place)
        mask = {TARGET: "T", STOP: "S"}.get(style, ".")
        message = str(rendered.owner[place]) if rendered.owner[place] >= 0 else "-"
        shown = _visible(_decode((token,), tokenizer)).replace("\n", "")
        lines.append(f"{place:>6} {token:>7}  {mask:>4}  {message:>7}  {shown}".rstrip())
    return "\n".join(lines)


def _style(rendered: Rendered, place: int) -> str:
    if rendered.loss_mask[place]:
        return STOP if rendered.input_ids[place] in rendered.stop_ids else TARGET
    return TEMPLATE if rendered.owner[place] < 0 else MESSAGE


def _readable(
    input_ids: tuple[int, ...], styles: list[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[int, str]]:
    """(first token, text) of the smallest groups of tokens of one style that decode to whole characters."""
    first = 0
    for last in range(1, len(input_ids) + 1):
        shown = _decode(input_ids[first:last], tokenizer)
        grows = last < len(input_ids) and styles[last] == styles[first] and last - first < _LONGEST_CHARACTER
        if shown.endswith("\ufffd") and grows:
            continue
        yield first, shown
        first = last


def _decode(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast) -> str:
    shown = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    piece = str(tokenizer.convert_ids_to_tokens(ids[0]))  # SentencePiece decoders drop the space of the first piece
    return f" {shown}" if piece.startswith("▁") and not shown.startswith(" ") else shown


def _visible(text: str) -> str:
    return "".join(_VISIBLE.get(char) or (char if _is_printable(char) else f"⟨U+{ord(char):04X}⟩") for char in text)


def _is_printable(char: str) -> bool:
    # Cc controls and escapes, Cf direction overrides and zero-width, Cs surrogates, Co private, Zl and Zp line breaks
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
