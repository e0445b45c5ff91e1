"""Tokens and their loss mask for people: coloured for a terminal, or as plain text. Owns no output: it returns text.

A token that is only a part of a character is shown as its bytes, ‹e4 bd›. Safe against what the text may hold: control characters and escape sequences are shown by name, never sent to the
terminal, and nothing is read as markup.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.pieces import from_byte_level, from_sentencepiece
from tunesmith.types import Rendered

TARGET = "black on green"  # a token the model is trained to write
STOP = "bold white on dark_green"  # the target that ends a turn
MESSAGE = ""  # what a person or the system said
TEMPLATE = "dim"  # what the template put between
_LEGEND = (("target", TARGET), ("stop", STOP), ("message", MESSAGE), ("template", TEMPLATE))
_VISIBLE = {"\n": "⏎\n", "\t": "⇥", "\r": "␍"}
_LONGEST_CHARACTER = 8  # tokens one character may take: 4 bytes, and joined emoji
_STRAY = re.compile("[\udc80-\udcff]+")  # bytes that are no whole character, as Python's surrogateescape holds them


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
    for first, shown in _readable(rendered.input_ids, styles, _Decoder(tokenizer)):
        text.append(_visible(shown), style=styles[first])
        if boundaries:
            text.append("|", style="dim red")
    return text


def tokens_in_plain(rendered: Rendered, tokenizer: PreTrainedTokenizerFast) -> str:
    """One line per token: place, id, T for a target (S for one that ends a turn), message index, text.

    Where the bytes of several tokens make one character, it stands behind those of the last one: "‹a0› = 你".
    """
    lines = [f"{'place':>6} {'id':>7}  mask  message  text"]
    decoder = _Decoder(tokenizer)
    begun = b""  # of a character that the tokens before have not finished
    for place, token in enumerate(rendered.input_ids):
        style = _style(rendered, place)
        mask = {TARGET: "T", STOP: "S"}.get(style, ".")
        message = str(rendered.owner[place]) if rendered.owner[place] >= 0 else "-"
        text = decoder.text((token,))
        shown = _visible(text).replace("\n", "")
        if _STRAY.search(text):
            whole, begun = _finished(begun + text.encode("utf-8", "surrogateescape"))
            shown += f" = {_visible(whole)}" if whole else ""
        else:
            begun = b""
        lines.append(f"{place:>6} {token:>7}  {mask:>4}  {message:>7}  {shown}".rstrip())
    return "\n".join(lines)


def _finished(data: bytes) -> tuple[str, bytes]:
    """(the characters that are whole, the bytes of the one that is not); ("", ...) where the data is no text."""
    text = data.decode("utf-8", "surrogateescape")
    whole = text.rstrip("".join(map(chr, range(0xDC80, 0xDD00))))
    rest = text[len(whole) :].encode("utf-8", "surrogateescape")
    is_text = len(rest) < 4 and not _STRAY.search(whole)
    return whole.strip() if is_text else "", rest[-3:]


def _style(rendered: Rendered, place: int) -> str:
    if rendered.loss_mask[place]:
        return STOP if rendered.input_ids[place] in rendered.stop_ids else TARGET
    return TEMPLATE if rendered.owner[place] < 0 else MESSAGE


def _readable(input_ids: tuple[int, ...], styles: list[str], decoder: _Decoder) -> Iterator[tuple[int, str]]:
    """(first token, text) of the smallest groups of tokens of one style that decode to whole characters."""
    first = 0
    for last in range(1, len(input_ids) + 1):
        shown = decoder.text(input_ids[first:last])
        grows = last < len(input_ids) and styles[last] == styles[first] and last - first < _LONGEST_CHARACTER
        if _STRAY.fullmatch(shown[-1:]) and grows:
            continue
        yield first, shown
        first = last


class _Decoder:
    """Tokens to text. Bytes that make no character are held as surrogateescape does, where decode gives U+FFFD."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        is_byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self._bytes_of = from_byte_level if is_byte_level else from_sentencepiece

    def text(self, ids: Sequence[int]) -> str:
        shown = str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        pieces = [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]
        if "\ufffd" in shown:
            shown = b"".join(map(self._bytes_of, pieces)).decode("utf-8", "surrogateescape")
        # SentencePiece decoders drop the space of the first piece.
        return f" {shown}" if pieces[0].startswith("▁") and not shown.startswith(" ") else shown


def _visible(text: str) -> str:
    return "".join(
        f"‹{part.encode('utf-8', 'surrogateescape').hex(' ')}›" if _STRAY.match(part) else "".join(map(_shown, part))
        for part in re.split(f"({_STRAY.pattern})", text)
    )


def _shown(char: str) -> str:
    return _VISIBLE.get(char) or (char if _is_printable(char) else f"⟨U+{ord(char):04X}⟩")


def _is_printable(char: str) -> bool:
    # Cc controls and escapes, Cf direction overrides and zero-width, Cs surrogates, Co private, Zl and Zp line breaks
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
