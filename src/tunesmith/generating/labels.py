"""Answers taken apart: which fields of a JSON answer can be drawn before anybody has read the message, what to draw for
them, and whether a message and its answer agree on them; and words that give a message its topic. Knows no prompts and
asks nobody.

Drawn are fields that hold one of few values (enum, const, boolean, number, null) and identifiers (a string with a
`pattern`); everything else is written. Values come from the seeds, so they keep the seeds' joint distribution; an
identifier that its message names gets new digits.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.generating.constraints import Schema
from tunesmith.generating.examples import Example
from tunesmith.text.rouge import rouge_l

_FEW_VALUES = {"boolean", "integer", "number", "null"}
_SEPARATORS = r"[\s\-_#./:]*"
_SEPARATOR = re.compile(r"[\s\-_#./:]")
_DRAWS = 20  # of digits, until an identifier fits its pattern
_WORD = re.compile(r"[^\W\d_]{4,}")
_TOPIC_WORDS = 2
_RARE = 20  # a topic word is in at most one of so many texts
_FEWEST = 3
_FIRST_UNSPACED = 0x2E80  # CJK and what follows


@dataclass(frozen=True)
class Labelled:
    """A seed whose answer was taken apart. `named`: identifiers among the drawn fields that its message holds."""

    example: Example
    drawn: dict[str, Any]
    written: dict[str, Any]
    named: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The drawn fields without what makes an identifier one of many: rows of one kind ask for the same sort of message."""
        return json.dumps({name: name if name in self.named else value for name, value in self.drawn.items()})


@dataclass(frozen=True)
class Fields:
    """The fields of an output schema, each with its own schema, references resolved."""

    drawn: Mapping[str, Schema]
    written: Mapping[str, Schema]

    @classmethod
    def of(cls, schema: Schema | None) -> Fields:
        """Empty where the schema is none of an object."""
        properties = {
            name: _resolved(part, schema or {}) for name, part in (schema or {}).get("properties", {}).items()
        }
        drawn = {name: part for name, part in properties.items() if _is_drawn(part)}
        return cls(drawn, {name: part for name, part in properties.items() if name not in drawn})

    @cached_property
    def identifiers(self) -> Mapping[str, re.Pattern[str]]:
        """Drawn field -> how its values look in running text, whatever stands between their parts."""
        patterns = {name: part["pattern"] for name, part in self.drawn.items() if "pattern" in part}
        return {name: re.compile(_loose(pattern), re.IGNORECASE) for name, pattern in patterns.items()}

    def take_apart(self, example: Example) -> Labelled | None:
        """None where the reply is no JSON object, or lacks a drawn field."""
        try:
            answer = json.loads(example.output)
        except ValueError:
            return None
        if not isinstance(answer, dict) or not self.drawn.keys() <= answer.keys():
            return None
        drawn = {name: answer[name] for name in self.drawn}
        named = tuple(name for name in self.identifiers if drawn[name] and _holds(example.input, str(drawn[name])))
        return Labelled(example, drawn, {name: answer[name] for name in self.written if name in answer}, named)

    def draw(self, model: Labelled, rng: random.Random) -> dict[str, Any]:
        """The drawn fields of a new answer like the model's, with identifiers of its own."""
        return {
            name: _with_new_digits(value, self.drawn[name]["pattern"], rng) if name in model.named else value
            for name, value in model.drawn.items()
        }

    def fault(
        self, drawn: Mapping[str, Any], named: Sequence[str], message: str, written: Mapping[str, Any]
    ) -> tuple[str, str] | None:
        """(reason, detail) where message or answer contradict the drawn fields, None where nothing is found.

        value_missing: the message lacks an identifier it should name. wrong_value: message or answer hold another one, or
        the answer writes it in another way than it was drawn.
        """
        for name in named:
            if not _holds(message, str(drawn[name])):
                return "value_missing", f"the message does not hold {name} {drawn[name]!r}"
        texts = {"input": message, **{name: text for name, text in written.items() if isinstance(text, str)}}
        for name, pattern in self.identifiers.items():
            for place, text in texts.items():
                for found in pattern.finditer(text):
                    right = found.group() == drawn[name] or (
                        place == "input" and _holds(found.group(), str(drawn[name]))
                    )
                    if drawn[name] is None or not right:
                        return "wrong_value", f"{place} holds {found.group()!r}, and {name} is {drawn[name]!r}"
        return None


def likeness(message: str, written: Mapping[str, Any]) -> float:
    """The highest ROUGE-L F1 of a message with a text of its answer: near 1 where one speaks the other's words."""
    return max((rouge_l(message, text) for text in written.values() if isinstance(text, str)), default=0.0)


class Topics:
    """Words that say what a text is about: of four letters and more, in more than one of the texts and in few of them.
    Writing that has no spaces has none."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(word for text in texts for word in set(_words(text)))
        most = max(_FEWEST, len(texts) // _RARE)
        self._words = frozenset(word for word, number in counts.items() if 1 < number <= most)

    def draw(self, text: str, rng: random.Random) -> list[str]:
        """Up to two of a text's topic words, in its order."""
        found = [word for word in dict.fromkeys(_words(text)) if word in self._words]
        places = sorted(rng.sample(range(len(found)), min(_TOPIC_WORDS, len(found))))
        return [found[place] for place in places]


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if ord(max(word)) < _FIRST_UNSPACED]


def _is_drawn(part: Schema) -> bool:
    kinds = part.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    return bool({"enum", "const", "pattern"} & part.keys()) or (bool(kinds) and kinds <= _FEW_VALUES)


def _resolved(part: Schema, root: Schema) -> Schema:
    """A property's schema, with a reference into the same schema followed."""
    seen: set[str] = set()
    while isinstance(reference := part.get("$ref"), str) and reference.startswith("#/") and reference not in seen:
        seen.add(reference)
        target: Any = root
        for name in reference[2:].split("/"):
            target = target.get(name, {}) if isinstance(target, dict) else {}
        part = target
    return part


def _loose(pattern: str) -> str:
    """A pattern without its anchors that also matches where its separators are left out or others stand there."""
    body = pattern.removeprefix("^").removesuffix("$")
    parts: list[str] = []
    in_class = False
    for piece in re.findall(r"\\.|.", body, re.DOTALL):
        in_class = piece == "[" or (in_class and piece != "]")
        bare = piece.removeprefix("\\")
        parts.append(_SEPARATORS if not in_class and piece != "." and _SEPARATOR.fullmatch(bare) else piece)
    return rf"(?<![A-Za-z0-9])(?:{''.join(parts)})(?![A-Za-z0-9])"


def _holds(text: str, value: str) -> bool:
    """Whether a text names an identifier: its digits (its letters where it has none), whatever stands between them."""
    wanted = "".join(filter(str.isdigit, value)) or _SEPARATOR.sub("", value)
    return wanted.casefold() in _SEPARATOR.sub("", text).casefold()


def _with_new_digits(value: Any, pattern: str, rng: random.Random) -> Any:
    """The value with every digit drawn anew; as it is where no draw fits the pattern."""
    for _ in range(_DRAWS):
        fresh = re.sub(r"[0-9]", lambda _match: str(rng.randrange(10)), str(value))
        if re.search(pattern, fresh):
            return fresh
    return value
