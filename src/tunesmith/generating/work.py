"""The loop every generator runs in: items are worked on side by side, their rows judged in order.

An item is a number; the work on it is one request or a chain of them. Owns the stop (enough rows, a hard stop, no more
items) and the patience with a teacher that fails. Knows nothing of what is asked.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count, islice

from tunesmith.generating.asking import TeacherFailed
from tunesmith.generating.examples import Example
from tunesmith.generating.gate import Frame, Gate, Piece
from tunesmith.generating.in_order import Patience, results_in_order
from tunesmith.generating.parsing import Broken
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate

MAX_ITEMS_PER_ROUND = 32


@dataclass(frozen=True)
class Work:
    """What came of one item. `answer` is shown where not one of its pieces can be read."""

    pieces: tuple[Piece, ...]
    frame: Frame = field(default_factory=Frame)
    answer: str = ""


WorkOn = Callable[[int], Awaitable[Work]]
WorkAfter = Callable[[int, tuple[Example, ...], int], Awaitable[Work]]


@dataclass(frozen=True)
class _Result:
    number: int
    work: Work | None
    error: str | None = None


class Workshop:
    """One generator's run: its gate, its patience, and how many rows one item gives at most."""

    def __init__(
        self,
        options: Generate,
        ctx: GenerationContext,
        wanted: int,
        *,
        generator: str,
        rows_per_item: int,
        examples: Iterable[Example] = (),
        compare: bool = True,
        needs_reply: bool = True,
        slots: bool = False,
    ) -> None:
        """slots: the requests of an item begin alike. Then no more items are begun than the teacher answers requests at a
        time: a local one keeps each beginning in a slot of its own, and what had to leave its slot is read again."""
        self.gate = Gate(
            ctx,
            list(examples),
            wanted=wanted,
            max_similarity=options.max_similarity,
            generator=generator,
            compare=compare,
            needs_reply=needs_reply,
        )
        self._patience = Patience(options.max_failures, where="recipe.generate")
        self._rows_per_item = rows_per_item
        self._concurrency = max(one.concurrency for one in (ctx.client, ctx.user_client) if one is not None)
        self._most_items = self._concurrency if slots else math.inf

    async def write(self, work_on: WorkOn, items: Iterable[int] | None = None) -> int:
        """Work on items 0, 1, 2 ... (or those given) until enough rows are kept or a hard stop is met; returns how many
        were judged.

        Law: work_on(number) depends on the number, the recipe and the seeds alone. Then what comes out does not depend
        on concurrency, timing, interruptions, or on how many rows are wanted: a longer run begins with a shorter one.
        """
        return await self._run(iter(items if items is not None else count()), work_on)

    async def write_in_rounds(self, work_after: WorkAfter, *, first: int = 0) -> None:
        """As write(), where an item may look at rows kept before: work_after(number, kept, round).

        Rounds have 1, 2, 4 ... 32 items; those of one round see the rows that were kept when it began. So the law of
        write() holds, and the pieces of a run that stops within a round are met again by a longer one.
        """
        numbers = count(first)
        for round_number in count():
            before = tuple(self.gate.accepted)
            size = min(2**round_number, MAX_ITEMS_PER_ROUND)

            async def work_on(number: int, kept: tuple[Example, ...] = before, at: int = round_number) -> Work:
                return await work_after(number, kept, at)

            if await self._run(islice(numbers, size), work_on) < size:
                return

    async def _run(self, items: Iterator[int], work_on: WorkOn) -> int:
        """How many items were judged."""

        async def attempt(number: int) -> _Result:
            try:
                return _Result(number, await work_on(number))
            except TeacherFailed as failure:
                return _Result(number, None, str(failure))

        num_judged = 0
        running = results_in_order(
            items,
            attempt,
            lambda in_flight: in_flight < min(self._most_items, math.ceil(self.gate.missing / self._rows_per_item)),
            concurrency=self._concurrency,
        )
        async with aclosing(running) as results:
            async for result in results:
                num_judged += 1
                if result.work is None:
                    self._patience.failed(result.error)
                    continue
                work = result.work
                self.gate.judge_framed(work.pieces, work.frame, asked_for=self._rows_per_item, request=result.number)
                readable = sum(not isinstance(piece, Broken) for piece in work.pieces)
                if work.pieces:
                    self._patience.read(readable, work.answer)
        return num_judged
