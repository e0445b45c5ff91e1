"""One request on its way: what the ledger and the teacher tell each other about it, beside the request and its answer.

Owns the channel and nothing that goes through it. A teacher finds the call of the running task in `current_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from tunesmith.teachers.budget import Reservation

current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)
"""The call that the running task makes; None where nobody keeps a ledger."""

Mark = Callable[[float, str | None], None]
"""Writes down that a request goes out: (worst case in US dollars, name of the batch it goes with)."""


class Call:
    """A paid-for request in the making.

    key: of the request. batch: the batch it went out with in an earlier process that never saw the answer, None = none.
    raw: what the endpoint sent beside the text, set by the teacher and kept by the ledger.
    """

    def __init__(
        self,
        key: str,
        reservation: Reservation,
        *,
        mark: Mark,
        keep: Callable[[bytes], None],
        batch: str | None = None,
    ) -> None:
        self.key = key
        self.reservation = reservation
        self.batch = batch
        self.raw: bytes | None = None
        self.keep = keep
        """Writes down bytes that were paid for and are no answer."""
        self._mark = mark
        self._marked_usd = 0.0 if batch is None else reservation.usd
        self._is_marked = batch is not None

    @property
    def is_marked(self) -> bool:
        """Whether anything was written down about it."""
        return self._is_marked

    def sending(self, batch: str | None = None) -> None:
        """To be called before the request leaves: when it returns, a kill no longer hides what this may cost.
        StoreError where the disk is full: then it must not leave."""
        usd = self.reservation.usd - self._marked_usd
        if usd > 0 or batch is not None:
            self._marked_usd = self.reservation.usd
            self._is_marked = True
            self._mark(max(usd, 0.0), batch)
