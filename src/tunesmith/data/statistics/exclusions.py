"""What filters and readers took away: reasons with their rows, and an example of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tunesmith.data.statistics.texts import prompt_of, reply_of
from tunesmith.hashing import canonical_json
from tunesmith.types import Excluded


@dataclass(frozen=True)
class Taken:
    """The rows of one reason, and the first of them."""

    reason: str
    num: int
    where: str
    detail: str
    prompt: str  # or the row as it was found, where it is no conversation
    reply: str


_LONGEST = 2000


class Exclusions:
    """Collects excluded rows. Holds one example per reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Excluded] = {}

    def add(self, row: Excluded) -> None:
        self._counts[row.reason] += 1
        if row.reason not in self._first:
            self._first[row.reason] = row

    @property
    def num(self) -> int:
        """All excluded rows."""
        return self._counts.total()

    def taken(self) -> list[Taken]:
        """By reason, the largest first."""
        return [_taken(self._first[reason], num) for reason, num in self._counts.most_common()]


def _taken(row: Excluded, num: int) -> Taken:
    if row.conversation is not None:
        prompt, reply = prompt_of(row.conversation), reply_of(row.conversation) or ""
    elif row.raw is not None:
        prompt = row.raw if isinstance(row.raw, str) else canonical_json(row.raw).decode("utf-8", "replace")
        reply = ""
    else:
        prompt = reply = ""
    return Taken(row.reason, num, row.where, row.detail[:_LONGEST], prompt[:_LONGEST], reply[:_LONGEST])
