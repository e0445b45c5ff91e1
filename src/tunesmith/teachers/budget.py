"""The hard stop on money: worst-case cost is reserved before a request is sent and settled when its answer is there.

Owns the arithmetic of one cap. Knows neither what a request is nor who sends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

from tunesmith.errors import BudgetExceeded

current_reservation: ContextVar[Reservation | None] = ContextVar("current_reservation", default=None)
"""The reservation of the request that the running task sends. A teacher extends it before it sends a request again
that may already have been billed (a timeout, an answer that broke off)."""


class Reservation:
    """Money set aside for one request."""

    def __init__(self, budget: Budget, usd: float) -> None:
        self.usd = usd
        self.on_extend: Callable[[float], None] = lambda usd: None
        self._budget = budget

    def extend(self, usd: float) -> bool:
        """Set aside `usd` more. False, and nothing changed, where the cap does not allow it."""
        if not self._budget.fits(usd):
            return False
        self.usd += usd
        self.on_extend(usd)
        return True


class Budget:
    """A cap in US dollars; None = count only. Law: `spent_usd` plus everything reserved never exceeds the cap.

    `reserve` answers in the order of its callers. A caller whose worst case does not fit waits while earlier requests
    are in flight, because most of them will cost less than their worst case; it is refused only when none is left. So
    whether a request is sent depends on the requests before it and not on timing.
    """

    def __init__(self, cap_usd: float | None, *, where: str, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self.spent_usd = spent_usd
        self._where = where
        self._open: set[Reservation] = set()
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()

    @property
    def reserved_usd(self) -> float:
        """Worst case of everything in flight."""
        return sum(reservation.usd for reservation in self._open)

    def fits(self, usd: float) -> bool:
        """Whether `usd` more stays within the cap, should everything in flight cost its worst case."""
        return self.cap_usd is None or self.spent_usd + self.reserved_usd + usd <= self.cap_usd

    async def reserve(self, usd: float) -> Reservation:
        """Set `usd` aside. Raises BudgetExceeded where it does not fit and nothing in flight could make room."""
        async with self._turn:
            while not self.fits(usd):
                if not self._open:
                    raise self._refusal(usd)
                self._settled.clear()
                await self._settled.wait()
            reservation = Reservation(self, usd)
            self._open.add(reservation)
            return reservation

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Give the reservation back and count what the request cost."""
        self._open.discard(reservation)
        self.spent_usd += usd
        self._settled.set()

    def _refusal(self, usd: float) -> BudgetExceeded:
        return BudgetExceeded(
            f"${self.spent_usd:.6f} of ${self.cap_usd:.6f} are spent and the next request may cost up to ${usd:.6f}",
            where=self._where,
            hint="raise it, lower `max_tokens`, or choose a cheaper teacher",
        )
