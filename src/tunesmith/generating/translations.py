"""Whether a translation is in the language that was asked for. Knows names of languages and what of a text is prose; which
language a text is in, it is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

DetectLanguage = Callable[[str], tuple[str, float]]

_MIN_LETTERS = 24
"""Shorter texts may be the same in two languages, and are mistaken for others."""
_CJK_LETTERS = 3  # a Chinese character, a kana or a Hangul syllable says as much as three letters
_MIN_PROBABILITY = 0.6
_NO_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]+\$|https?://\S+|\S+@\S+|<[^<>\n]*>", re.DOTALL)
_CJK = re.compile(r"[\u3041-\u30fa\u3400-\u9fff\uac00-\ud7a3]")


def translation_fault(text: str, *, original: str | None, target: str, detect: DetectLanguage | None) -> str | None:
    """Why `text` is no text in the target language; None where it may be one, or is too short or no prose.

    original: what was to be translated, None where the text is an answer. target: a language's name. A language whose name is
    not known is only held apart from the original's. detect: (ISO 639-1 code, probability) of a text; without it, only
    an unchanged text is a fault.
    """
    if original is not None and text == original.strip() and len(text) >= _MIN_LETTERS:
        return "came back as it was"
    prose = _prose(text)
    if detect is None or not prose:
        return None
    found, probability = detect(prose)
    expected = code_of(target)
    if not found or probability < _MIN_PROBABILITY:
        return None
    if expected is not None:
        return None if _alike(found, expected) else f"is in {found!r} ({probability:.2f}), expected {expected!r}"
    before = detect(_prose(original)) if original is not None and _prose(original) else ("", 0.0)
    if before[0] == found and before[1] >= _MIN_PROBABILITY:
        return f"is in {found!r} ({probability:.2f}) as before, expected {target}"
    return None


def code_of(language: str) -> str | None:
    """ISO 639-1 code of a language's name in English, Chinese or itself, or of a code; None where it is not known."""
    name = language.strip().casefold()
    return _codes().get(name) or _codes().get(name.split("-")[0].split("(")[0].strip())


def _prose(text: str) -> str:
    """The text without code, formulas and addresses; "" where too little is left, or it is data."""
    if text.lstrip()[:1] in ("{", "["):
        return ""
    prose = " ".join(_NO_PROSE.sub(" ", text).split())
    letters = sum(map(str.isalpha, prose)) + (_CJK_LETTERS - 1) * len(_CJK.findall(prose))
    return prose if letters >= _MIN_LETTERS else ""


def _alike(found: str, expected: str) -> bool:
    return found == expected or any(found in group and expected in group for group in _table()["alike"])


@cache
def _codes() -> dict[str, str]:
    names = _table()["names"]
    return {name.casefold(): code for code, known in names.items() for name in (code, *known)}


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((files("tunesmith.generating") / "languages.yaml").read_text(encoding="utf-8"))
