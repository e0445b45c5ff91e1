"""Two surveys in the same rows: names with their number in each, so that terminal and page show the same."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.statistics.difference import Difference
from tunesmith.data.statistics.lengths import Distribution
from tunesmith.data.statistics.survey import Survey

Pairs = dict[str, tuple[int, int]]
"""Name -> rows in the first set, rows in the second."""

_NUM_SHOWN = 12


def tables(a: Survey, b: Survey) -> Iterator[tuple[str, Pairs]]:
    """The tables that differ, by title; beyond the twelve most frequent names the rest is one line. Where all rows of both
    sets have one name, only how many rows there are could differ, and another table says that."""
    for title in [*a.tables, *(title for title in b.tables if title not in a.tables)]:
        numbers = [{count.name: count.num for count in each.tables.get(title, [])} for each in (a, b)]
        names = sorted({*numbers[0], *numbers[1]}, key=lambda name: (-sum(each.get(name, 0) for each in numbers), name))
        pairs = {name: (numbers[0].get(name, 0), numbers[1].get(name, 0)) for name in names}
        rest = names[_NUM_SHOWN:]
        if rest:
            folded = tuple(sum(pairs[name][side] for name in rest) for side in (0, 1))
            pairs = {name: pairs[name] for name in names[:_NUM_SHOWN]} | {
                f"({len(rest):,} others)": (folded[0], folded[1])
            }
        if any(x != y for x, y in pairs.values()) and not (len(names) == 1 and all(pairs[names[0]])):
            yield title, pairs


def equal_tables(a: Survey, b: Survey) -> list[str]:
    """Titles of the tables that are the same in both, or have the same one name for all rows."""
    different = {title for title, _ in tables(a, b)}
    return [title for title in {**a.tables, **b.tables} if title not in different]


def lengths(a: Survey, b: Survey) -> Iterator[tuple[str, str, list[Distribution | None]]]:
    """(part, unit, [in the first, in the second])."""
    for part in [*a.lengths, *(part for part in b.lengths if part not in a.lengths)]:
        for unit in ("chars", "words", "tokens"):
            found = [each.lengths.get(part, {}).get(unit) for each in (a, b)]
            if found != [None, None]:
                yield part, unit, found


def row_counts(found: Difference) -> list[tuple[str, int, int]]:
    """(what, in the first, in the second): the lines add up to "all that were compared"."""
    a, b = found.before, found.after
    lines = [
        ("in both", found.num_both, found.num_both),
        ("same prompt, other reply", found.num_other_reply, found.num_other_reply),
        ("only there", a.num_only, b.num_only),
        ("repeat an earlier row there", a.num_repeats, b.num_repeats),
        ("all that were compared", a.num_rows, b.num_rows),
    ]
    if a.num_unreadable or b.num_unreadable:
        lines.append(("not compared: left out unread", a.num_unreadable, b.num_unreadable))
    return lines
