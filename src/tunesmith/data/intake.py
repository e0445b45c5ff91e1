"""Examples on their way in: kept on disk, with about 37 bytes of each in memory, while it is decided which are held out.

A split needs to have seen every row, and the rows may not fit into memory. So they go to a scratch file as they are read;
their ids, origins, prompts and sides stay here as numbers; then those that changed are read again with what was decided.
Refuses to know files of examples and recipes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.identity import normalise, prompt_key, with_system_prompt
from tunesmith.data.keys import Keys, number_of
from tunesmith.data.rows import RowFile, Rows, RowWriter, Span
from tunesmith.data.split import SIDE_OF, SPLIT_OF, TEST, Sides, decide_splits
from tunesmith.hashing import digest_text
from tunesmith.protocols import Pool
from tunesmith.text.jsonl import dump_record, parse_record
from tunesmith.types import Conversation, Document, Example, Excluded, Labelled, Preference, Split

KINDS: tuple[type[Example], ...] = (Conversation, Preference, Labelled, Document)
FILES = {Conversation: "conversations.jsonl", Preference: "preferences.jsonl", Labelled: "labelled.jsonl", Document: "documents.jsonl"}  # fmt: skip

_KEPT, _SAME_PROMPT, _SAME_ORIGIN = 0, 1, 2


@dataclass
class Columns:
    """What is known of each row, one number per row and column."""

    kinds: NDArray[np.uint8]  # place in KINDS
    sides: Sides
    origins: Keys
    prompts: Keys  # what must not stand on both sides of the split
    own: Keys  # id of a row that names no origin, 0 for others
    is_alone: NDArray[np.bool_]  # a prompt without a reply

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        columns = zip(*(vars(part).values() for part in (_NO_ROWS, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


_NO_ROWS = Columns(*(np.zeros(0, kind) for kind in ("u1", "u1", "u8", "u8", "u8", "?")))


@dataclass
class Taken:
    """Some examples as lines of the scratch file; a worker makes it."""

    lines: bytes
    columns: Columns
    test_sources: dict[int, str] = field(default_factory=dict[int, str])  # prompt -> the marked test row that has it
    first_alone: Conversation | None = None
    alone_fields: set[str] = field(default_factory=set[str])  # metadata of prompts without a reply


def take_examples(examples: Iterable[Example], system_prompt: str | None) -> Taken:
    """Examples with the system prompt where they have none, and with the prompt as origin where they name none."""
    lines: list[bytes] = []
    rows: list[tuple[int, int, int, int, int, bool]] = []
    taken = Taken(b"", _NO_ROWS)
    for example in examples:
        key = number_of(_key(example))
        own = number_of(example.id) if example.origin == example.id else 0
        if own:
            example.origin = f"{key:016x}"
        if system_prompt and isinstance(example, Conversation):
            example = with_system_prompt(example, system_prompt)
            key = number_of(_key(example))
        if example.split == "test":
            taken.test_sources[key] = example.source
        is_alone = False
        if isinstance(example, Conversation) and example.reply is None:
            is_alone = True
            taken.first_alone = taken.first_alone or example
            taken.alone_fields |= set(example.metadata)
        kind = KINDS.index(type(example))
        rows.append((kind, SIDE_OF[example.split], number_of(example.origin), key, own, is_alone))
        lines.append(dump_record(example))
    taken.lines = b"".join(lines)
    if rows:
        columns = zip(*rows, strict=True)
        types = (column.dtype for column in vars(_NO_ROWS).values())
        taken.columns = Columns(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))
    return taken


class Intake:
    """Rows go in (`add`), are decided on once (`decide`), and come out by kind (`kept`, `leaked`). Use it in a with block."""

    def __init__(self, scratch: Path, pool: Pool) -> None:
        self.first_alone: Conversation | None = None
        self.alone_fields: set[str] = set()
        self._pool = pool
        self._writer = RowWriter(scratch)
        self._parts: list[Columns] = []
        self._test_sources: dict[int, str] = {}

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def add(self, taken: Taken) -> None:
        """Put rows after those before."""
        self._writer.write(taken.lines)
        self._parts.append(taken.columns)
        self._test_sources |= taken.test_sources
        self.first_alone = self.first_alone or taken.first_alone
        self.alone_fields |= taken.alone_fields

    def decide(self, fraction: float, rng_seed: int) -> None:
        """Hold out `fraction` of the undecided rows by origin, and find the rows that would show a test row to the
        trainer. Nothing can be added after it."""
        self._file: RowFile = self._writer.close()
        columns = self._columns = Columns.joined(self._parts)
        self._parts.clear()
        given = columns.sides
        self._is_touched = self._follow_renamed()
        if fraction:
            columns.sides = decide_splits(columns.origins, columns.sides, fraction, rng_seed)
        self._is_touched |= columns.sides != given
        # With equal prompts in one origin, a prompt is on both sides only where a person marked it so.
        is_test = columns.sides == TEST
        self._fates = np.zeros(len(is_test), np.uint8)
        if is_test.any():
            self._fates[np.isin(columns.origins, np.unique(columns.origins[is_test]))] = _SAME_ORIGIN
            self._fates[np.isin(columns.prompts, np.unique(columns.prompts[is_test]))] = _SAME_PROMPT
            self._fates[is_test] = _KEPT

    def _follow_renamed(self) -> NDArray[np.bool_]:
        """A row that names no origin has its prompt as origin; rows that name such a row's id follow it. Which did."""
        origins, own = self._columns.origins, self._columns.own
        follows = np.zeros(len(own), np.bool_)
        is_named = (own != 0) & np.isin(own, np.unique(origins[own == 0]))
        if is_named.any():
            renamed = dict(zip(own[is_named].tolist(), origins[is_named].tolist(), strict=True))
            for place in np.flatnonzero((own == 0) & np.isin(origins, own[is_named])).tolist():
                origins[place] = renamed[int(origins[place])]
                follows[place] = True
        return follows

    def __len__(self) -> int:
        return len(self._columns.sides)

    def num(self, kind: type[Example], split: Split) -> int:
        """Rows of a kind that stay, of one side; undecided ones count as train."""
        stays = self._stays(kind) & ((self._columns.sides == TEST) == (split == "test"))
        return int(stays.sum())

    @property
    def num_alone(self) -> int:
        """Prompts without a reply that stay."""
        return int((self._stays(Conversation) & self._columns.is_alone).sum())

    def kept(self, kind: type[Example]) -> Iterator[bytes]:
        """The lines of a kind that stay, in their order, with origin and split as decided; many at a time."""
        chosen = np.flatnonzero(self._stays(kind))
        rows = Rows(self._file, chosen, self._pool)
        if not self._is_touched[chosen].any():
            return (b"".join(span.lines()) for span in rows.spans())
        return self._pool.map(partial(_decided, kind), self._with_decisions(rows))

    def _with_decisions(self, rows: Rows) -> Iterator[_Decisions]:
        done = 0
        for span in rows.spans():
            places = rows.numbers[done : done + span.num_rows]
            done += span.num_rows
            columns = self._columns
            yield _Decisions(span, self._is_touched[places], columns.origins[places], columns.sides[places])

    def leaked(self) -> Iterator[Excluded]:
        """The rows that would show a test row to the trainer, with the reason. The test row stays."""
        for code, kind in enumerate(KINDS):
            for place in np.flatnonzero((self._columns.kinds == code) & (self._fates != _KEPT)).tolist():
                (line,) = self._file.span(place, place).lines()
                example = parse_record(line, kind, where=f"{self._file.path.name}:{place + 1}")
                example = _settled(example, int(self._columns.origins[place]), int(self._columns.sides[place]))
                if self._fates[place] == _SAME_PROMPT:
                    source = self._test_sources.get(int(self._columns.prompts[place])) or "that was held out"
                    detail = f"the prompt is that of the test row {source}"
                else:
                    detail = f"its origin {example.origin!r} also has test rows"
                row = example if isinstance(example, Conversation) else None
                raw = None if row else example.model_dump(mode="json", exclude_none=True)
                yield Excluded(reason="in_test", detail=detail, where=example.source, conversation=row, raw=raw)

    def _stays(self, kind: type[Example]) -> NDArray[np.bool_]:
        return (self._columns.kinds == KINDS.index(kind)) & (self._fates == _KEPT)


@dataclass(frozen=True)
class _Decisions:
    """A span, and what was decided on its rows."""

    span: Span
    is_touched: NDArray[np.bool_]
    origins: Keys
    sides: Sides


def _decided(kind: type[Example], decisions: _Decisions) -> bytes:
    lines = decisions.span.lines()
    for place in np.flatnonzero(decisions.is_touched).tolist():
        example = parse_record(lines[place], kind, where=decisions.span.path.name)
        settled = _settled(example, int(decisions.origins[place]), int(decisions.sides[place]))
        lines[place] = dump_record(settled)
    return b"".join(lines)


def _settled(example: Example, origin: int, side: int) -> Example:
    if origin != number_of(example.origin):
        example.origin = f"{origin:016x}"
    example.split = SPLIT_OF[side]
    return example


def _key(example: Example) -> str:
    if isinstance(example, Document):
        return digest_text(normalise(example.text))[:16]
    return prompt_key(example)[:16]
