"""Where rows come from and what they are in: source, model, licence, split, language. Counts with a bound on memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tunesmith.data.language import LanguageDetector
from tunesmith.errors import MissingExtra
from tunesmith.types import Example

_MOST_NAMES = 50_000
_LONGEST_NAME = 200
_PLACE = re.compile(r"(?::\d+|#\d+)$")
_GENERATED = re.compile(r"[a-z_]+:((?:openai|local|scripted|batch)\b.*)", re.DOTALL)


@dataclass(frozen=True)
class Count:
    """How many rows have a name."""

    name: str
    num: int


class Tally:
    """Counts names. From 50,000 different ones on, names not seen before are counted together as "(others)"."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._num_others = 0

    def add(self, name: str) -> None:
        name = name[:_LONGEST_NAME]
        if name in self._counts or len(self._counts) < _MOST_NAMES:
            self._counts[name] += 1
        else:
            self._num_others += 1

    def most(self, num_names: int) -> list[Count]:
        """The most frequent names, and at the end one "(n others)" for the rest. The numbers add up to all rows."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(num for _, num in ordered[num_names:]) + self._num_others
        names = [Count(name, num) for name, num in ordered[:num_names]]
        if rest:
            more = "more than " if self._num_others else ""
            names.append(Count(f"({more}{max(1, len(ordered) - num_names):,} others)", rest))
        return names


def source_of(row: Example) -> str:
    """The file or generator a row comes from, without its line."""
    return _PLACE.sub("", row.source) or "(not stated)"


def model_of(row: Example) -> str:
    """Who wrote the replies: metadata.model, or the teacher in the row's source."""
    named = row.metadata.get("model")
    if isinstance(named, str) and named:
        return named
    generated = _GENERATED.fullmatch(row.source)
    return generated[1] if generated else "(not stated)"


_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("ja", "[\u3041-\u30fa]"),
        ("ko", "[\uac00-\ud7a3]"),
        ("zh", "[\u3400-\u4dbf\u4e00-\u9fff]"),
        ("th", "[\u0e01-\u0e3a]"),
        ("Cyrillic script", "[\u0400-\u04ff]"),
        ("Arabic script", "[\u0620-\u064a]"),
        ("he", "[\u05d0-\u05ea]"),
        ("Devanagari script", "[\u0900-\u097f]"),
        ("Greek script", "[\u0370-\u03ff]"),
        ("Latin script", "[A-Za-z\u00c0-\u024f]"),
    )
)
_LOOKED_AT = 200
_NO_LETTERS = "(no letters)"
_NOT_SURE = "(not sure)"
_SURE = 0.6
"""Of 500 replies of chat pages, 167 were "You too!", which the model takes for Italian with 0.51."""


def script_of(text: str) -> str:
    """The script of a text, as a language where only one is written in it: "zh", "Latin script"."""
    start = text[:_LOOKED_AT]
    num_letters = sum(map(str.isalpha, start))
    if not num_letters:
        return _NO_LETTERS
    shares = [(name, len(pattern.findall(start))) for name, pattern in _SCRIPTS]
    kana = shares[0][1]
    if kana > 0.1 * num_letters:
        return "ja"
    name, num = max(
        shares[1:], key=lambda share: share[1] * (2 if share[0] == "zh" else 1)
    )  # a Han character says more
    return name if num else "(other script)"


def language_namer() -> tuple[Callable[[str], str], MissingExtra | None]:
    """(names the language of a text, None), or (names its script, what is missing) without the extra `language`."""
    try:
        detector = LanguageDetector()
    except MissingExtra as missing:
        return script_of, missing

    def name(text: str) -> str:
        found = detector.detect(text[:_LOOKED_AT])
        if not found.code:
            return _NO_LETTERS
        return found.code if found.probability >= _SURE else _NOT_SURE

    return name, None


def count_all(names: Iterable[str]) -> Tally:
    """The tally of some names."""
    tally = Tally()
    for name in names:
        tally.add(name)
    return tally
