"""What tells groups of texts apart: the words of each that the others have less.

Class-based TF-IDF (Grootendorst 2022, equation 3): W = tf * log(1 + A / f), tf the word's share of the group's words, f its
share of all words, A the mean number of words per group; both counted by rows that have the word, so that one long row
names no group. Han text is cut into pairs of characters. Knows nothing of how the groups came about.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from tunesmith.text.rouge import unicode_tokens

_CHARACTERS_READ = 1_000
_MIN_SHARE = 0.04  # of the texts of a group that a word of its name is in, and two texts at least
_FEW = 4  # texts of a group that any word may name
_HAN_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_HAN_STOPS = frozenset(
    "的了是在和与或及有个一以于请你我他她它们这那为对将把被从到中上下也就都要会能可吗呢吧啊什么如何怎下列些"
)


def name_groups(groups: Sequence[Sequence[str]], num_words: int) -> list[list[str]]:
    """At most num_words of each group of texts, the strongest first (of equal ones the first met), none a form of another."""
    counts = [Counter(word for text in texts for word in _words(text)) for texts in groups]
    everywhere: Counter[str] = Counter()
    for count in counts:
        everywhere.update(count)
    mean = everywhere.total() / max(1, len(groups))
    names: list[list[str]] = []
    for count, texts in zip(counts, groups, strict=True):
        total = max(1, count.total())
        least = max(2, _MIN_SHARE * len(texts)) if len(texts) > _FEW else 1
        weights = {
            word: num / total * math.log(1 + mean / everywhere[word]) for word, num in count.items() if num >= least
        }
        names.append(_unlike(sorted(weights, key=lambda word: -weights[word]), num_words))
    return names


def _words(text: str) -> list[str]:
    """Each once, as they come."""
    start = text[:_CHARACTERS_READ]
    words = [word for word in unicode_tokens(_HAN_RUN.sub(" ", start)) if len(word) > 1 and not word.isdigit()]
    words = [word for word in words if word not in _stop_words()]
    for run in _HAN_RUN.findall(start):
        words += [run[i : i + 2] for i in range(len(run) - 1) if not _HAN_STOPS & set(run[i : i + 2])]
    return list(dict.fromkeys(words))


def _unlike(words: Sequence[str], num_words: int) -> list[str]:
    """The first words that do not repeat each other."""
    chosen: list[str] = []
    for word in words:
        if not any(_alike(word, other) for other in chosen):
            chosen.append(word)
        if len(chosen) == num_words:
            break
    return chosen


def _alike(word: str, other: str) -> bool:
    """Two forms of a word, or two pairs cut from the same Chinese word."""
    if _HAN_RUN.match(word):
        return bool(set(word) & set(other))
    return word[:4] == other[:4] and abs(len(word) - len(other)) <= 3


@cache
def _stop_words() -> frozenset[str]:
    text = (files("tunesmith.data") / "words" / "stop_words_en.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
