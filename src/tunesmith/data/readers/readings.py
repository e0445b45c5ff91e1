"""Which ways there are to read one row, over all forms, and which of them say the same.

A form gives its readings by the names of a row's fields. A reading counts where its values can be used; one that takes
only a part of what another takes is a part of it (`input`, `output` beside an `instruction`). Where more than one is left
and they give different examples, nobody knows which is meant. Refuses to know files: shape.py decides what is usual there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import ValidationError

from tunesmith.data.readers.fields import BadRow, Fields, Pair, Parsed, Thumb, check_turns, found
from tunesmith.errors import DataError
from tunesmith.types import Message

SYSTEM = frozenset({"system", "system_prompt"})
"""What fields.system_first takes."""


@dataclass(frozen=True)
class Reading:
    """One way to read a row. `parse` returns the examples in it."""

    label: str  # "question -> answer"
    parse: Callable[[Fields], Sequence[Parsed]]
    takes: frozenset[str]  # the fields of the example, those that may be missing among them
    has_reply: bool = True
    is_main: bool = False  # by names that belong together alone: where a person named the form, no others count
    special: Literal["", "weak", "strong"] = ""  # taken where nearly all rows of the file can be read so
    form: str = ""  # of special readings and what they stand against: the reader that reads so and no other way


class Form(Protocol):
    """What is asked of a shape here."""

    @property
    def name(self) -> str: ...

    @property
    def readings(self) -> Callable[[Mapping[str, Any]], list[Reading]]: ...


class Option(NamedTuple):
    """A reading and the name of its form."""

    form: str
    reading: Reading


def candidates(row: Mapping[str, Any], forms: Sequence[Form]) -> list[Option]:
    """The readings by the names of the fields alone, special ones apart. One form is one that a person named."""
    options = [Option(form.name, reading) for form in forms for reading in form.readings(row) if not reading.special]
    if len(forms) == 1 and any(each.reading.is_main for each in options):
        options = [each for each in options if each.reading.is_main]
    if any(each.reading.has_reply for each in options):
        options = [each for each in options if each.reading.has_reply]
    if len(options) < 2:
        return options
    taken = [each.reading.takes & row.keys() for each in options]
    return [each for each, mine in zip(options, taken, strict=True) if not any(mine < other for other in taken)]


def options_of(row: Mapping[str, Any], forms: Sequence[Form]) -> list[Option]:
    """The ways to read a row that give different examples. [] where there are several and none has values to use; one
    alone is not tried."""
    options = candidates(row, forms)
    if len(options) < 2:
        return options
    kept: list[tuple[Option, list[Parsed]]] = []
    for each in options:
        said = parsed(row, each.reading)
        if said is None or any(_covers(other, said) for _, other in kept):
            continue
        kept = [*((option, other) for option, other in kept if not _covers(said, other)), (each, said)]
    return _without_crossed([option for option, _ in kept], row)


def rival_of(row: Mapping[str, Any], forms: Sequence[Form], chosen: Reading, said: Sequence[Parsed]) -> Option | None:
    """Another way to read the row, which gives another example than the chosen one gave; None where there is none."""
    for option in options_of(row, forms):
        if option.reading.takes & row.keys() <= chosen.takes:
            continue
        other = parsed(row, option.reading)
        if other is not None and not _covers(said, other) and not _covers(other, said):
            return option
    return None


def parsed(row: Mapping[str, Any], reading: Reading) -> list[Parsed] | None:
    """The examples in a row, None where its values cannot be used."""
    try:
        said = list(reading.parse(Fields(row)))
        for each in said:
            if isinstance(each, list):
                check_turns(each)
            elif isinstance(each, Thumb):
                check_turns(each.prompt)
    except (BadRow, ValidationError):
        return None
    return said


def ambiguity(
    shown: Sequence[tuple[Mapping[str, Any], Option]], forms: Sequence[str], *, which: str, where: str
) -> DataError:
    """The error that shows two readings, each with the row it is one of. forms: those that decide it when named."""
    names = dict.fromkeys(option.form for _, option in shown[:2])
    naming = ""
    if forms:
        commands = " or ".join(f"`--from {form}`" for form in forms)
        naming = f"name the form, with {commands} on the command line and `ingest.format: {forms[0]}` in a recipe; or "
    return DataError(
        f"{which} can be read in two ways ({' and '.join(names)}): {both_shown(shown)}",
        where=where,
        hint=f"{naming}remove or rename the fields that do not belong to the example, or split the file",
    )


def both_shown(shown: Sequence[tuple[Mapping[str, Any], Option]]) -> str:
    """What the first two readings take, for people."""
    return "; or ".join(f"as {option.reading.label}: {_preview(row, option.reading)}" for row, option in shown[:2])


def _without_crossed(options: list[Option], row: Mapping[str, Any]) -> list[Option]:
    """Without the readings all of whose fields belong to readings by names that stand together: `prompt` and `output`
    where there are `instruction` and `output`, `prompt` and `completion`."""
    main = frozenset[str]().union(*(each.reading.takes for each in options if each.reading.is_main))
    return [each for each in options if each.reading.is_main or not each.reading.takes & row.keys() <= main]


def _covers(one: Sequence[Parsed], other: Sequence[Parsed]) -> bool:
    """Whether the first says all that the other says: a better and a worse answer say the dialogue that ends in the better."""
    said = [*one]
    for each in one:
        if isinstance(each, Pair):
            said.append([*each.prompt, Message(role="assistant", content=each.chosen)])
        elif isinstance(each, Thumb) and each.desirable:
            said.append([*each.prompt, Message(role="assistant", content=each.reply)])
    return all(each in said for each in other)


def _preview(row: Mapping[str, Any], reading: Reading) -> str:
    names = [name for name in re.split(" -> |, ", reading.label) if name in row]
    return ", ".join(f"{name} = {str(row[name])[:40]!r}" for name in names) or found(row)
