"""Rows of a data set as numbers, to compare two sets without holding their texts: 8 arrays, 52 bytes per row.

Two rows are the same where their messages are, the system message aside: a run adds its own to every row. Owns what "the
same row", "the same prompt" and a row's fate mean when sets are compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import numpy as np

from tunesmith.data.identity import normalise
from tunesmith.data.statistics.counts import source_of
from tunesmith.data.statistics.texts import messages_of
from tunesmith.hashing import digest_json
from tunesmith.types import Document, Example, Excluded, Labelled, Preference

FIELDS = ("system message", "source", "licence", "metadata")
"""What may differ between two rows that are the same."""

_MOST_FATES = 60_000


class RowKeys:
    """Rows go in through `watch`; then each array has one entry per row that is a conversation, preference ... in order.

    Rows that were left out count where their conversation is known; `num_unreadable` are the others.
    """

    def __init__(self) -> None:
        self.fate_names: list[str] = []
        self.num_unreadable = 0
        self._fate_codes: dict[str, int] = {}
        self._ids, self._prompts, self._fates = array("Q"), array("Q"), array("H")
        self._fields = [array("Q") for _ in FIELDS]

    def watch(self, rows: Iterable[Example | Excluded], on_row: Callable[[Example | Excluded], None]) -> None:
        """Take every row, and hand it on."""
        for row in rows:
            on_row(row)
            example = example_of(row)
            if example is None:
                self.num_unreadable += 1
                continue
            self._ids.append(row_key(example))
            self._prompts.append(_prompt_key(example))
            self._fates.append(self._code(fate_of(row)))
            system = "\n".join(each.content for each in messages_of(example) if each.role == "system")
            values = (system, source_of(example), example.licence or "", example.metadata)
            for column, value in zip(self._fields, values, strict=True):
                column.append(_number(value))

    def _code(self, fate: str) -> int:
        code = self._fate_codes.get(fate)
        if code is None:
            fate = fate if len(self.fate_names) < _MOST_FATES else "(others)"
            code = self._fate_codes.setdefault(fate, len(self.fate_names))
            if code == len(self.fate_names):
                self.fate_names.append(fate)
        return code

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        return np.frombuffer(self._ids, np.uint64) if self._ids else np.zeros(0, np.uint64)

    @property
    def prompts(self) -> np.ndarray:
        return np.frombuffer(self._prompts, np.uint64) if self._prompts else np.zeros(0, np.uint64)

    @property
    def fates(self) -> np.ndarray:
        return np.frombuffer(self._fates, np.uint16) if self._fates else np.zeros(0, np.uint16)

    def values(self, field: str) -> np.ndarray:
        """Digests of one of FIELDS."""
        column = self._fields[FIELDS.index(field)]
        return np.frombuffer(column, np.uint64) if column else np.zeros(0, np.uint64)


def example_of(row: Example | Excluded) -> Example | None:
    """The row itself, or the conversation of a row that was left out."""
    return row.conversation if isinstance(row, Excluded) else row


def fate_of(row: Example | Excluded) -> str:
    """Where a row ended: train, test, undecided, or left out with its reason."""
    return f"left out: {row.reason}" if isinstance(row, Excluded) else row.split or "undecided"


def row_key(row: Example) -> int:
    """64 bits that are equal for the same row."""
    kind: list[object] = [type(row).__name__]
    if isinstance(row, Preference):
        kind.append(row.rejected)
    if isinstance(row, Labelled):
        kind.append(row.desirable)
    messages = [each.model_dump(exclude_none=True) for each in messages_of(row) if each.role != "system"]
    return _number([kind, messages])


def _prompt_key(row: Example) -> int:
    """64 bits that are equal for the same prompt but for case and spaces; 0 of a document."""
    if isinstance(row, Document):
        return 0
    asked = [
        [each.role, normalise(each.content), each.tool_calls or []] for each in row.prompt if each.role != "system"
    ]
    return _number(asked) if asked else 0


def _number(value: object) -> int:
    return int(digest_json(value)[:16], 16)
