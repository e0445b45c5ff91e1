"""Words of a text in any script, and ROUGE-L between two texts.

Two tokenizers: ours, which knows every script, and that of the rouge_score package, which keeps [a-z0-9] alone (two
equal Chinese sentences score 0.0 with it, and "café" becomes "caf"). On ASCII text they agree. Each also exists as an
Alphabet, a table by code point, for loops that never see a Python string. Needs no torch, numpy only for the tables.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    import numpy as np

Tokenizer = Callable[[str], list[str]]

# Classes of code points in an Alphabet's table; 0 separates words.
WORD, UNSPACED, MARK, UNSPACED_MARK = 1, 2, 3, 4

_ASCII_WORD = re.compile(r"[a-z0-9]+")

# Scripts written without spaces between words: each character is a token of its own. Hangul has spaces.
_UNSPACED = (
    "\u0e00-\u0e4f\u0e80-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3005-\u3007\u3021-\u3029\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han and kana
)


def rouge_score_tokens(text: str) -> list[str]:
    """The tokens of google's rouge_score package (without stemming), for comparison with published numbers."""
    return _ASCII_WORD.findall(text.lower())


def unicode_tokens(text: str) -> list[str]:
    """Lower-case words: runs of letters, digits and combining marks; one token per character of unspaced scripts.

    NFKC first, so that full-width letters and composed accents compare equal.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _unicode_word().findall(_normal(text))


def character_spans(text: str, first: int, last: int) -> tuple[int, int]:
    """Characters [start, end) of `text` in which its words [first, last) of unicode_tokens stand, last > first.

    Where NFKC joins or splits characters, each base character with its marks is normalised alone to find the place;
    where even that does not add up to the whole, the span is all of the text.
    """
    if text.isascii():
        matches = list(_ASCII_WORD.finditer(text.lower()))
        return matches[first].start(), matches[last - 1].end()
    origins: list[int] = []  # of each character of the normalised text, its place in the text
    for match in re.finditer(rf".[{_marks()}]*", text, re.DOTALL):
        origins += [match.start()] * len(_normal(match[0]))
    normal = _normal(text)
    if len(origins) != len(normal):
        return 0, len(text)
    matches = list(_unicode_word().finditer(normal))
    end = matches[last - 1].end()
    return origins[matches[first].start()], origins[end] if end < len(origins) else len(text)


@dataclass(frozen=True)
class Alphabet:
    """A tokenizer as data: `prepare` a text that is not ASCII, lower the ASCII letters, then class each code point.

    Runs of WORD are a word; UNSPACED is a word of its own; MARK continues the word before it or separates;
    UNSPACED_MARK continues the word before it or is a word of its own.
    """

    tokenize: Tokenizer
    prepare: Callable[[str], str]
    classes: Callable[[], np.ndarray]  # (0x110000,) uint8


def alphabet_of(tokenize: Tokenizer) -> Alphabet | None:
    """The alphabet of one of the two tokenizers of this module; None for any other."""
    if tokenize is unicode_tokens:
        return Alphabet(unicode_tokens, _normal, _unicode_classes)
    if tokenize is rouge_score_tokens:
        return Alphabet(rouge_score_tokens, str.lower, _ascii_classes)
    return None


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


@cache
def _ascii_classes() -> np.ndarray:
    import numpy as np

    classes = np.zeros(0x110000, np.uint8)
    for code in b"abcdefghijklmnopqrstuvwxyz0123456789":
        classes[code] = WORD
    return classes


@cache
def _unicode_classes() -> np.ndarray:
    """About 0.1 s, once. Above 0x40000 there are no letters, only variation selectors."""
    import numpy as np

    classes = np.zeros(0x110000, np.uint8)
    everything = "".join(map(nth_character, range(0x40000 - 0x800)))
    for match in re.finditer(r"[^\W_]", everything):
        classes[ord(match[0])] = WORD
    for match in _unspaced().finditer(everything):
        classes[ord(match[0])] = UNSPACED
    for mark in _marks():
        classes[ord(mark)] = UNSPACED_MARK if classes[ord(mark)] == UNSPACED else MARK
    return classes


def count_words(text: str) -> int:
    """Words as a person counts them: pieces between spaces, where each unspaced-script character is one word.

    "don't" is 1, "你好，world" is 3, "👍" is 1.
    """
    if text.isascii():
        return len(text.split())
    return sum(_words_in_piece(piece) for piece in text.split())


def _words_in_piece(piece: str) -> int:
    spaced, num_unspaced = _unspaced().subn(" ", piece)
    num_spaced = sum(any(map(str.isalnum, part)) for part in spaced.split())
    return max(1, num_unspaced + num_spaced)


def count_unspaced(tokens: Iterable[str]) -> int:
    """How many of the tokens (of unicode_tokens) are characters of a script without spaces, so only a part of a word."""
    return sum(_unspaced().match(token) is not None for token in tokens)


def f_measure(lcs: int, len_a: int, len_b: int) -> float:
    """ROUGE-L F1 of an LCS of `lcs` tokens between texts of `len_a` and `len_b` tokens (Lin 2004).

    The float expression is rouge_score's, so that values that tie with a threshold fall to the same side as there.
    """
    if not lcs:
        return 0.0
    precision = lcs / len_b
    recall = lcs / len_a
    return 2 * precision * recall / (precision + recall)


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of two token lists; exact, bit-parallel."""
    vocabulary: dict[str, str] = {}
    return LCSseq.similarity(_as_characters(a, vocabulary), _as_characters(b, vocabulary))


def rouge_l(a: str, b: str, tokenize: Tokenizer = unicode_tokens) -> float:
    """ROUGE-L F1 of two texts in [0, 1]; 0.0 where either has no word. Symmetric."""
    tokens_a, tokens_b = tokenize(a), tokenize(b)
    return f_measure(lcs_length(tokens_a, tokens_b), len(tokens_a), len(tokens_b))


def _as_characters(tokens: Iterable[str], vocabulary: dict[str, str]) -> str:
    return "".join([vocabulary.setdefault(token, nth_character(len(vocabulary))) for token in tokens])


MAX_CHARACTERS = 0x110000 - 0x800  # code points without the surrogates


def nth_character(n: int) -> str:
    """A different character for each n below MAX_CHARACTERS; never half of a surrogate pair."""
    return chr(n if n < 0xD800 else n + 0x800)


@cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}]")


@cache
def _unicode_word() -> re.Pattern[str]:
    marks = _marks()
    return re.compile(rf"[{_UNSPACED}][{marks}]*|(?:(?![{_UNSPACED}])[^\W_][{marks}]*)+")


@cache
def _marks() -> str:
    # `re` knows no class of combining marks, and without them Hindi or Arabic words would fall apart.
    # All marks lie in these two ranges of the code space; finding them takes some 20 ms, once.
    return "".join(
        chr(code)
        for first, last in ((0x300, 0x1F000), (0xE0100, 0xE01F0))
        for code in range(first, last)
        if unicodedata.category(chr(code)).startswith("M")
    )
