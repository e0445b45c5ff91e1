"""Words and phrases as one expression, and the lists of them that come with the package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

# Letters of scripts that put spaces between words. Above U+0E00 words are not set apart, or, as in Korean, carry endings.
_SPACED_LETTER = r"[^\W\u0e00-\U0010ffff]"


class PhraseFinder:
    """Finds any of the phrases: whole words where the script has them, case ignored."""

    def __init__(self, phrases: Iterable[str]) -> None:
        cleaned = [" ".join(phrase.split()) for phrase in phrases if phrase.strip()]
        # Most texts hold none of the words: a plain search for them costs a tenth of the expression.
        self._first_words = tuple({phrase.split()[0].lower() for phrase in cleaned})
        self._pattern = re.compile("|".join(map(_one_phrase, cleaned)) or r"(?!)", re.IGNORECASE)

    def search(self, text: str) -> re.Match[str] | None:
        """The first phrase in the text."""
        lowered = text.lower()
        return self._pattern.search(text) if any(word in lowered for word in self._first_words) else None


@cache
def word_list(name: str) -> tuple[str, ...]:
    """The lines of words/<name>.txt; lines that begin with # are for people."""
    text = (files("tunesmith.data") / "words" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def any_of(expressions: Iterable[str]) -> re.Pattern[str]:
    """One expression for several, case ignored."""
    return re.compile("|".join(f"(?:{each})" for each in expressions), re.IGNORECASE)


def _one_phrase(phrase: str) -> str:
    body = r"\s+".join(map(re.escape, phrase.split()))
    before = f"(?<!{_SPACED_LETTER})" if re.match(_SPACED_LETTER, phrase[0]) else ""
    after = f"(?!{_SPACED_LETTER})" if re.match(_SPACED_LETTER, phrase[-1]) else ""
    return before + body + after
