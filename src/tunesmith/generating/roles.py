"""Two people with names and roles for a dialogue, drawn from tables that are data. Knows nothing of how it is written."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Cast:
    """The first person asks and becomes the user of the row, the second one becomes its assistant."""

    user_name: str
    user_role: str
    assistant_name: str
    assistant_role: str
    occasion: str

    @property
    def names(self) -> tuple[str, str]:
        return self.user_name, self.assistant_name


def draw_cast(rng: random.Random, language: str) -> Cast:
    """Two different names, a pair of roles that belong together, and an occasion, independently of each other."""
    table = tables(language)
    first, second = rng.sample(table["names"], 2)
    user_role, assistant_role = rng.choice(table["pairs"])
    return Cast(first, user_role, second, assistant_role, rng.choice(table["occasions"]))


@cache
def tables(language: str) -> dict[str, list[Any]]:
    """names, pairs (who asks, who answers), occasions."""
    text = (files("tunesmith.generating") / f"roles.{language}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
