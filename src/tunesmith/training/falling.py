"""Says when the better answers of a preference training lose probability themselves: then the model forgets how to answer.

Losses over pairs see the difference of two answers alone, and nothing in it holds either of them up (Pal et al. 2024, arXiv
2402.13228; Razin et al. 2024, arXiv 2410.08847). Owns when to say so; changes no loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

import torch

from tunesmith.events import Note
from tunesmith.protocols import EventSink
from tunesmith.training.batches import Batch, Samples
from tunesmith.training.head import Head
from tunesmith.training.losses import BatchLoss, Loss, Measure

_STEPS = 10
_NATS = 5.0
"""Mean fall of a chosen answer over the last _STEPS steps. In runs that kept or raised the held-out score it stayed within 2 nats of
where it began; in one that had to be stopped it was 8 nats down after 10 steps and 36 after 20."""


class WatchedPairs:
    """A loss over pairs with a reference, which it leaves as it is; warns once."""

    def __init__(self, loss: Loss, events: EventSink) -> None:
        self._loss, self._events = loss, events
        self.may_be_zero = loss.may_be_zero
        self._chosen: deque[float] = deque(maxlen=_STEPS)  # mean log(pi / pi_ref) of each step, in nats
        self._rejected: deque[float] = deque(maxlen=_STEPS)
        self._sums, self._num_pairs = [0.0, 0.0], 0
        self._has_warned = False

    def units(self, samples: Samples, indices: Sequence[int]) -> float:
        return self._loss.units(samples, indices)

    def begin_step(self, samples: Samples, indices: Sequence[int], measure: Measure) -> None:
        self._end_step()
        self._loss.begin_step(samples, indices, measure)

    def __call__(self, head: Head, hidden: torch.Tensor, batch: Batch) -> BatchLoss:
        loss, measured = self._loss(head, hidden, batch)
        self._sums[0] += measured["chosen_log_ratio"]
        self._sums[1] += measured["rejected_log_ratio"]
        self._num_pairs += len(batch.samples) // 2
        return loss, measured

    def _end_step(self) -> None:
        if not self._num_pairs:
            return
        self._chosen.append(self._sums[0] / self._num_pairs)
        self._rejected.append(self._sums[1] / self._num_pairs)
        self._sums, self._num_pairs = [0.0, 0.0], 0
        fallen = -fmean(self._chosen)
        if self._has_warned or len(self._chosen) < _STEPS or fallen <= _NATS:
            return
        self._has_warned = True
        other = fmean(self._rejected)
        both = "both answers lose probability" if other < 0 else "the better answers lose probability"
        self._events.emit(
            Note(
                level="warning",
                message=f"{both}: the chosen ones have {fallen:.1f} nats less than before alignment (mean of {_STEPS} steps), the "
                f"rejected ones {abs(other):.1f} {'less' if other < 0 else 'more'}; raise align.beta or lower align.learning_rate",
            )
        )
