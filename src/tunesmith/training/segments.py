"""Which rows of a row of tokens see which: segments, and what is added to their scores beside the causal mask.

Knows no attention function, no packing and no models. Legend: L tokens of a segment, S tokens it sees (its beginning and
itself), T tokens of the row, H query heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows that attend causally to themselves and, before that, to everything in `seen`."""

    start: int
    length: int
    seen: tuple[tuple[int, int], ...] = ()  # (start, end) of the rows of its beginning, first token first

    @property
    def rows(self) -> slice:
        """Its own rows."""
        return slice(self.start, self.start + self.length)

    @property
    def num_before(self) -> int:
        """Tokens of the beginning: the position of the segment's first token."""
        return sum(end - start for start, end in self.seen)

    @property
    def num_seen(self) -> int:
        """Tokens the last one of the segment sees, itself included."""
        return self.num_before + self.length

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of the rows seen, the segment's own last; neighbours are one place."""
        own = self.start, self.start + self.length
        if self.seen and self.seen[-1][1] == self.start:
            return (*self.seen[:-1], (self.seen[-1][0], own[1]))
        return (*self.seen, own)


Segments = tuple[Segment, ...]
"""Segments of a row of tokens: they cover it in order, and see only rows before themselves."""


def build_segments(lengths: Sequence[int]) -> Segments:
    """Segments of samples with these lengths that share nothing, laid end to end."""
    starts = accumulate(lengths, initial=0)
    return tuple(Segment(start, length) for start, length in zip(starts, lengths, strict=False))


def rows_of(tensor: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(heads, T, D) -> (heads, S, D), a view where the places are one."""
    parts = [tensor[:, start:end] for start, end in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Bias:
    """What is added to the scores beside the causal mask."""

    window: int | None = None  # the last keys a token sees, itself included; None: all
    slopes: torch.Tensor | None = None  # (H,) ALiBi's fall per token of distance (Press et al. 2021, arXiv 2108.12409)

    def matrix(self, before: int, seen: int, device: torch.device | None = None) -> torch.Tensor:
        """(L, S) or (H, L, S) in fp32, for queries that are the last L = S - before of S tokens in a row."""
        bias = torch.full((seen - before, seen), float("-inf"), device=device).triu_(before + 1)
        if self.window is not None:
            bias += torch.full_like(bias, float("-inf")).tril_(before - self.window)
        if self.slopes is None:
            return bias
        ago = torch.arange(seen, device=device) - torch.arange(before, seen, device=device)[:, None]  # (L, S) <= 0
        return bias + self.slopes.float()[:, None, None] * ago


PLAIN = Bias()
