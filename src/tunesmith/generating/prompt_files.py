"""The prompts, which are data files: reading them and filling their slots. Knows no prompt's words.

A file begins with `slots: a b c`, the values it takes, and goes on in `=== section ===` blocks. A section named like a
slot is put around that slot's value, and left out where there is no value ("" or None).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from tunesmith.types import Message


@dataclass(frozen=True)
class PromptFile:
    """A prompt in one language."""

    name: str
    slots: frozenset[str]
    sections: Mapping[str, str]

    def fill(self, section: str, values: Mapping[str, object]) -> str:
        """Text of a section with its slots filled. KeyError for a section or value that is missing."""
        unknown = values.keys() - self.slots
        if unknown:
            raise KeyError(f"{self.name} has no slot {sorted(unknown)}")
        filled = dict.fromkeys(self.slots, "")
        filled.update({name: str(value) for name, value in values.items() if value is not None})
        wrapped = {
            name: Template(self.sections[name]).substitute(filled) if value and name in self.sections else value
            for name, value in filled.items()
        }
        text = Template(self.sections[section]).substitute(wrapped)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def messages(self, section: str, values: Mapping[str, object]) -> tuple[Message, ...]:
        """The `system` section and another one as a conversation to send."""
        return (
            Message(role="system", content=self.fill("system", values)),
            Message(role="user", content=self.fill(section, values)),
        )

    def lines(self, section: str) -> list[str]:
        """The lines of a section that is a list."""
        return self.sections[section].splitlines()


@cache
def load_prompt(name: str, language: str) -> PromptFile:
    """prompts/<name>.<language>.md, checked: every slot that is used is declared, and the other way round."""
    file_name = f"{name}.{language}.md"
    text = (files("tunesmith.generating") / "prompts" / file_name).read_text(encoding="utf-8")
    head, *parts = re.split(r"^=== (\w+) ===$", text, flags=re.MULTILINE)
    sections = {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    slots = frozenset(head.removeprefix("slots:").split())
    used = {slot for body in sections.values() for slot in Template(body).get_identifiers()}
    if slots != used:
        raise ValueError(f"{file_name}: slots declared and used differ: {sorted(slots ^ used)}")
    return PromptFile(file_name, slots, sections)


@cache
def refusal_pattern() -> re.Pattern[str]:
    """One expression for every way of refusing in refusals.txt."""
    text = (files("tunesmith.generating") / "refusals.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return re.compile("|".join(f"(?:{line})" for line in lines), re.IGNORECASE)
