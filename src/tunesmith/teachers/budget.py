"""The hard stop on money: worst-case cost is reserved before a request is sent and settled when its answer is there.

Owns the arithmetic of one cap. Knows neither what a request is nor who sends it.
"""

from __future__ import annotations

import asyncio
import math

from tunesmith.errors import BudgetExceeded

_PER_USD = 10**12
"""Money is counted in whole millionths of a micro-dollar, rounded up: sums are exact, however many requests there are."""


class Reservation:
    """Money set aside for one request."""

    __slots__ = ("_budget", "usd")

    def __init__(self, budget: Budget, usd: float) -> None:
        self.usd = usd
        self._budget = budget

    def extend(self, usd: float) -> bool:
        """Set aside `usd` more. False, and nothing changed, where the cap does not allow it."""
        return self._budget.extend(self, usd)


class Budget:
    """A cap in US dollars; None = count only. Law: `spent_usd` plus everything reserved never exceeds the cap.

    `reserve` answers in the order of its callers. A caller whose worst case does not fit waits while earlier requests
    are in flight, because most of them will cost less than their worst case; it is refused only when none is left. So
    whether a request is sent depends on the requests before it and not on timing.
    """

    def __init__(self, cap_usd: float | None, *, where: str, spent_usd: float = 0.0) -> None:
        self.cap_usd = cap_usd
        self._cap = None if cap_usd is None else math.floor(cap_usd * _PER_USD)
        self._spent = _units(spent_usd)
        self._reserved = 0
        self._where = where
        self._open: set[Reservation] = set()
        self._num_waiting = 0
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()

    @property
    def spent_usd(self) -> float:
        """What all settled requests cost."""
        return self._spent / _PER_USD

    @property
    def reserved_usd(self) -> float:
        """Worst case of everything in flight."""
        return self._reserved / _PER_USD

    def fits(self, usd: float) -> bool:
        """Whether `usd` more stays within the cap, should everything in flight cost its worst case."""
        return self._cap is None or self._spent + self._reserved + _units(usd) <= self._cap

    async def reserve(self, usd: float) -> Reservation:
        """Set `usd` aside. Raises BudgetExceeded where it does not fit and nothing in flight could make room."""
        if not self._num_waiting and self.fits(usd):  # most requests end here
            return self._set_aside(usd)
        self._num_waiting += 1
        try:
            async with self._turn:
                while not self.fits(usd):
                    if not self._open:
                        raise self._refusal(usd)
                    self._settled.clear()
                    await self._settled.wait()
                return self._set_aside(usd)
        finally:
            self._num_waiting -= 1

    def adopt(self, usd: float) -> Reservation:
        """Turn money that was counted as spent, because nobody knew better, into a reservation that will be settled."""
        self._spent -= _units(usd)
        return self._set_aside(usd)

    def extend(self, reservation: Reservation, usd: float) -> bool:
        """See Reservation.extend."""
        if not self.fits(usd):
            return False
        self._reserved += _units(reservation.usd + usd) - _units(reservation.usd)
        reservation.usd += usd
        return True

    def settle(self, reservation: Reservation, usd: float) -> None:
        """Give the reservation back and count what the request cost. Settling twice changes nothing."""
        if reservation not in self._open:
            return
        self._open.discard(reservation)
        self._reserved -= _units(reservation.usd)
        self._spent += _units(usd)
        self._settled.set()

    def _set_aside(self, usd: float) -> Reservation:
        reservation = Reservation(self, usd)
        self._reserved += _units(usd)
        self._open.add(reservation)
        return reservation

    def _refusal(self, usd: float) -> BudgetExceeded:
        return BudgetExceeded(
            f"${self.spent_usd:.6f} of ${self.cap_usd:.6f} are spent and the next request may cost up to ${usd:.6f}",
            where=self._where,
            hint="raise it, lower `max_tokens`, or choose a cheaper teacher",
        )


def _units(usd: float) -> int:
    return math.ceil(usd * _PER_USD)
