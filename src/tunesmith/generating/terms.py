"""Whose terms a generated row stands under: those of the teacher that wrote it and of the examples it was made from.

The table is data with a date, and says of each entry whether it was compared with its source. What it does not know is
unknown, never allowed by silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from tunesmith.errors import DataError, RecipeError
from tunesmith.generating.lineage import Lineage
from tunesmith.generating.sources import Text
from tunesmith.recipe import Generate, TeacherSection
from tunesmith.types import Conversation, Excluded

_NOT_FOR_TRADE = re.compile(r"\bnc\b|non-?commercial|research[- ]only|academic", re.IGNORECASE)
_STRICTEST_FIRST = ("no", "unknown", "no_competitors", "with_conditions", "yes")
_ALLOWING = ("with_conditions", "yes")
_JOIN = " AND "


@dataclass(frozen=True)
class Terms:
    """may_train: yes, with_conditions, no_competitors, no or unknown. licence: of the teacher's answers, None = unknown.
    checked: the day on which the table's entry was compared with its source, False = never, None = no entry of the table."""

    may_train: str
    source: str
    licence: str | None = None
    checked: str | Literal[False] | None = None

    @property
    def told(self) -> str:
        """What is known, for messages: also how far it can be relied on."""
        when = {None: "", False: "; not checked"}.get(self.checked, f"; checked on {self.checked}")
        return f"{self.may_train} ({self.source}{when})"

    @property
    def allow_trade(self) -> bool:
        """Whether a model trained on the answers may be sold, as far as these terms go."""
        return self.may_train in _ALLOWING


def terms_of(section: TeacherSection, *, weights_licence: str | None, stated: str | None) -> Terms:
    """The terms of a teacher. `stated` (generate.outputs_licence) goes before the table; weights_licence: licence of a
    local teacher's model."""
    table = _table()
    if stated is not None:
        found = _by_licence(stated)
        if found is None:
            return Terms("yes", "stated in the recipe", stated)
        return replace(found, source=f"stated in the recipe; {found.source}")
    if section.kind == "local":
        found = _by_licence(weights_licence or "")
        return found or Terms("unknown", f"licence of the weights: {weights_licence or 'not stated'}", weights_licence)
    if section.kind == "scripted":
        return Terms("unknown", "a script")
    host = urlsplit(section.base_url).hostname or ""
    entry = table["hosts"].get(host)
    if entry is None:
        return Terms("unknown", f"{host} is not in the table of {table['date']}")
    return _entry(entry, None)


def require_trade(options: Generate, terms: Sequence[Terms]) -> None:
    """RecipeError where the recipe demands commercial use and a teacher's terms do not grant it."""
    for one in terms if options.require_commercial_use else ():
        if not one.allow_trade:
            raise RecipeError(
                f"the teacher's terms do not allow training a model for commercial use: {one.told}",
                where="recipe.generate.require_commercial_use",
                hint="choose a teacher under an open licence; where you know the terms of your own server's model, say so "
                "with `generate.outputs_licence`",
            )


def doubts(options: Generate, terms: Sequence[Terms]) -> list[str]:
    """What to tell people who demand commercial use: terms that allow it by an entry that nobody has checked."""
    asked = terms if options.require_commercial_use else ()
    return [
        f"commercial use is demanded, and the teacher's terms allow it only by an entry of the table that is not checked: "
        f"{one.told}; read the source before you rely on it"
        for one in asked
        if one.allow_trade and one.checked is False
    ]


def joined_licences(licences: Iterable[str | None]) -> str | None:
    """Several licences as one expression, each part once; None where none is known."""
    parts = (part for licence in licences if licence for part in licence.split(_JOIN))
    return _JOIN.join(dict.fromkeys(parts)) or None


def seeds_for(options: Generate, seeds: Sequence[Conversation]) -> list[Conversation]:
    """The seeds that may be shown: all, or where commercial use is demanded those whose licence is stated and allows it.

    Raises DataError where seeds are at hand and none may be shown.
    """
    if not options.require_commercial_use:
        return list(seeds)
    allowed = [seed for seed in seeds if _allows_trade(seed.licence)]
    if seeds and not allowed:
        found = ", ".join(sorted({seed.licence or "no licence" for seed in seeds}))
        raise DataError(
            f"commercial use is demanded, and no example is known to allow it (found: {found})",
            where="recipe.ingest.licence",
            hint="state the licence of your files with `ingest.licence` (own work: `proprietary`)",
        )
    return allowed


def usable(options: Generate, texts: Iterable[Text | Excluded]) -> Iterator[Text | Excluded]:
    """Texts of files, where commercial use is demanded without those that say of themselves that they do not allow it. A text
    that says nothing is its user's own."""
    for text in texts:
        if options.require_commercial_use and isinstance(text, Text) and (fault := _trade_fault(text.lineage)):
            yield Excluded(reason="licence", detail=fault, where=text.where, raw=text.text)
        else:
            yield text


def _trade_fault(lineage: Lineage) -> str | None:
    if lineage.commercial_use is False:
        return "commercial use is demanded, and what it was made from is not known to allow it"
    if lineage.licence and not _allows_trade(lineage.licence):
        return f"commercial use is demanded, and its licence is {lineage.licence}"
    if lineage.teacher_may_train is not None and lineage.teacher_may_train not in _ALLOWING:
        return f"commercial use is demanded, and its teacher's terms are: {lineage.teacher_may_train}"
    return None


def _allows_trade(licence: str | None) -> bool:
    return bool(licence) and not _NOT_FOR_TRADE.search(licence or "")


class Stamp:
    """Writes licence and terms into rows: those they bring along, those of the seeds they name, and the teacher's."""

    def __init__(self, terms: Sequence[Terms], seeds: Sequence[Conversation]) -> None:
        self._licences = [one.licence for one in terms if one.licence]
        self._terms = list(terms)
        self._by_seed = {seed.id: seed.licence for seed in seeds}

    def __call__(self, row: Conversation) -> Conversation:
        """The row with `licence` (several joined by " AND "), metadata.teacher_may_train (the strictest) and
        metadata.commercial_use: whether each of its teachers and examples is known to allow it."""
        made_from = [*row.metadata.get("seeds", ()), *filter(None, [row.metadata.get("like")])]
        given = [self._by_seed[seed] for seed in made_from if seed in self._by_seed]
        brought = row.licence.split(_JOIN) if row.licence else []
        terms = [one.may_train for one in self._terms]
        terms += filter(None, [row.metadata.get("teacher_may_train")])
        metadata: dict[str, Any] = {
            **row.metadata,
            "teacher_may_train": min(terms, key=_STRICTEST_FIRST.index),
            "commercial_use": row.metadata.get("commercial_use", True)
            and all(one in _ALLOWING for one in terms)
            and all(map(_allows_trade, [*brought, *given])),
        }
        licence = joined_licences([row.licence, *given, *self._licences])
        return row.model_copy(update={"licence": licence, "metadata": metadata})


def _by_licence(licence: str) -> Terms | None:
    for entry in _table()["licences"]:
        if re.search(entry["match"], licence, re.IGNORECASE):
            return _entry(entry, licence)
    return None


def _entry(entry: Mapping[str, Any], licence: str | None) -> Terms:
    checked = entry["checked"]
    when = str(checked) if checked else False  # YAML reads a day as a date
    return Terms(entry["may_train"], f"{entry['says']}: {entry['source']}; table of {_table()['date']}", licence, when)


@cache
def _table() -> Mapping[str, Any]:
    text = (files("tunesmith.generating") / "teacher_terms.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
