"""How two data sets differ: rows of one alone, rows of both, the same prompt with another reply, rows that moved.

Reads each set twice: once for 52 bytes per row, once for the texts of the few rows that are shown. The counts add up: the
rows of a set = both + other reply + only there + repetitions within it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tunesmith.data.statistics.counts import Count
from tunesmith.data.statistics.keys import FIELDS, RowKeys, example_of, fate_of
from tunesmith.data.statistics.survey import CountTokens, Survey, SurveyOptions, Surveyor
from tunesmith.data.statistics.texts import prompt_of, reply_of
from tunesmith.types import Example, Excluded

Rows = Iterable[Example | Excluded]
_ROWS_PER_CALL = 1024
_RANK_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd: no two ranks of a prompt meet


@dataclass(frozen=True)
class Side:
    """What is known of one of the two sets alone."""

    survey: Survey
    num_rows: int  # rows compared: those that were left out with their conversation too
    num_only: int
    num_repeats: int  # rows that repeat an earlier one of the same set
    num_unreadable: int  # left out without a conversation: not compared


@dataclass(frozen=True)
class Move:
    """Rows of both sets that ended elsewhere."""

    before: str
    after: str
    num: int


@dataclass(frozen=True)
class Shown:
    """A row as an example."""

    where: str
    fate: str
    prompt: str
    reply: str


@dataclass(frozen=True)
class ShownPair:
    """The same prompt in both sets."""

    before: Shown
    after: Shown


@dataclass(frozen=True)
class Difference:
    """What `tunesmith data diff` shows."""

    before: Side
    after: Side
    num_both: int
    num_other_reply: int
    fates: dict[str, tuple[int, int]]  # fate -> rows in each set
    moves: list[Move]
    changed_fields: list[Count]  # of rows in both
    only_before: list[Shown]
    only_after: list[Shown]
    other_reply: list[ShownPair]
    moved: list[ShownPair]


def find_difference(
    before: Callable[[], Rows],
    after: Callable[[], Rows],
    *,
    names: tuple[str, str],
    options: SurveyOptions,
    num_examples: int,
    count_tokens: CountTokens | None,
    on_rows: Callable[[int], None],
) -> Difference:
    """Compare what the two calls read. num_examples: rows shown of each kind."""
    left, left_survey = _read(before(), names[0], options, count_tokens, on_rows)
    right, right_survey = _read(after(), names[1], options, count_tokens, on_rows)
    match = _Match(left, right)
    changed = Counter({name: match.num_changed(name) for name in FIELDS})
    chosen = match.examples(num_examples)
    texts = [
        _texts(rows(), {place for pair in chosen.values() for place in pair[side]})
        for side, rows in ((0, before), (1, after))
    ]
    pairs = {
        kind: [ShownPair(texts[0][i], texts[1][j]) for i, j in zip(*chosen[kind], strict=True)]
        for kind in ("other_reply", "moved")
    }
    return Difference(
        before=Side(left_survey, len(left), len(match.only[0]), match.num_repeats[0], left.num_unreadable),
        after=Side(right_survey, len(right), len(match.only[1]), match.num_repeats[1], right.num_unreadable),
        num_both=len(match.both[0]),
        num_other_reply=len(match.other_reply[0]),
        fates=_fates(left, right),
        moves=match.moves(),
        changed_fields=[Count(name, num) for name, num in changed.most_common() if num],
        only_before=[texts[0][place] for place in chosen["only_before"][0]],
        only_after=[texts[1][place] for place in chosen["only_after"][1]],
        other_reply=pairs["other_reply"],
        moved=pairs["moved"],
    )


def _read(
    rows: Rows, name: str, options: SurveyOptions, count_tokens: CountTokens | None, on_rows: Callable[[int], None]
) -> tuple[RowKeys, Survey]:
    keys, surveyor = RowKeys(), Surveyor(options, count_tokens)

    def told() -> Iterator[Example | Excluded]:
        for number, row in enumerate(rows, start=1):
            yield row
            if number % _ROWS_PER_CALL == 0:
                on_rows(number)

    keys.watch(told(), surveyor.add)
    return keys, surveyor.finish(name)


def _fates(left: RowKeys, right: RowKeys) -> dict[str, tuple[int, int]]:
    numbers = [
        Counter({name: int(num) for name, num in zip(keys.fate_names, np.bincount(keys.fates), strict=False)})
        for keys in (left, right)
    ]
    order = ["train", "test", "undecided"]
    names = sorted(
        set(numbers[0]) | set(numbers[1]), key=lambda name: (order.index(name) if name in order else 9, name)
    )
    return {name: (numbers[0][name], numbers[1][name]) for name in names}


class _Match:
    """Which rows of the two sets belong together. All arrays hold places in the order of the rows of a set."""

    def __init__(self, left: RowKeys, right: RowKeys) -> None:
        self._left, self._right = left, right
        ids, firsts = zip(*(np.unique(keys.ids, return_index=True) for keys in (left, right)), strict=True)
        self.num_repeats = (len(left) - len(ids[0]), len(right) - len(ids[1]))
        _, at_left, at_right = np.intersect1d(ids[0], ids[1], assume_unique=True, return_indices=True)
        order = np.argsort(firsts[0][at_left], kind="stable")
        self.both = (firsts[0][at_left][order], firsts[1][at_right][order])
        alone = [np.sort(np.delete(first, at)) for first, at in zip(firsts, (at_left, at_right), strict=True)]
        keys = [_ranked(side.prompts[places]) for side, places in zip((left, right), alone, strict=True)]
        asked = [side.prompts[places] != 0 for side, places in zip((left, right), alone, strict=True)]
        alike = [places[known] for places, known in zip(alone, asked, strict=True)]
        keys = [key[known] for key, known in zip(keys, asked, strict=True)]
        _, at_left, at_right = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
        order = np.argsort(alike[0][at_left], kind="stable")
        self.other_reply = (alike[0][at_left][order], alike[1][at_right][order])
        self.only = tuple(np.setdiff1d(a, b, assume_unique=True) for a, b in zip(alone, self.other_reply, strict=True))
        names = sorted({*left.fate_names, *right.fate_names})
        codes = [np.array([names.index(name) for name in side.fate_names], np.int64) for side in (left, right)]
        self._names = names
        self._fates = [
            code[side.fates[places]] if len(places) else np.zeros(0, np.int64)
            for code, side, places in zip(codes, (left, right), self.both, strict=True)
        ]
        self._moved = np.flatnonzero(self._fates[0] != self._fates[1])

    def num_changed(self, field: str) -> int:
        """Rows in both whose field differs."""
        return int(np.count_nonzero(self._left.values(field)[self.both[0]] != self._right.values(field)[self.both[1]]))

    def moves(self) -> list[Move]:
        pairs = Counter(zip(self._fates[0][self._moved].tolist(), self._fates[1][self._moved].tolist(), strict=True))
        return [Move(self._names[i], self._names[j], num) for (i, j), num in pairs.most_common()]

    def examples(self, number: int) -> dict[str, tuple[list[int], list[int]]]:
        """kind -> places in each set of the first rows of that kind; of moves, one of each kind comes first."""
        fates = list(zip(self._fates[0][self._moved].tolist(), self._fates[1][self._moved].tolist(), strict=True))
        firsts = [at for at, pair in enumerate(fates) if fates.index(pair) == at] if len(fates) < 10_000 else []
        order = [*firsts, *(at for at in range(min(len(fates), number)) if at not in firsts)][:number]
        moved = self._moved[order] if order else self._moved[:0]
        return {
            "only_before": (self.only[0][:number].tolist(), []),
            "only_after": ([], self.only[1][:number].tolist()),
            "other_reply": (self.other_reply[0][:number].tolist(), self.other_reply[1][:number].tolist()),
            "moved": (self.both[0][moved].tolist(), self.both[1][moved].tolist()),
        }


def _ranked(prompts: np.ndarray) -> np.ndarray:
    """A number per row from its prompt and how many earlier rows have that prompt: equal prompts pair up in their order."""
    order = np.argsort(prompts, kind="stable")
    ordered = prompts[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else order
    ranks = np.empty(len(prompts), np.uint64)
    sizes = np.diff(np.append(begins, len(ordered)))
    ranks[order] = np.arange(len(ordered), dtype=np.uint64) - np.repeat(begins, sizes).astype(np.uint64)
    return prompts + ranks * _RANK_STEP


def _texts(rows: Rows, places: set[int]) -> dict[int, Shown]:
    """The rows at these places, which count rows as RowKeys does."""
    found: dict[int, Shown] = {}
    place = 0
    for row in rows if places else ():
        example = example_of(row)
        if example is None:
            continue
        if place in places:
            found[place] = Shown(example.source, fate_of(row), prompt_of(example), reply_of(example) or "")
            if len(found) == len(places):
                break
        place += 1
    return found
