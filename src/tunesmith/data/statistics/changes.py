"""Two texts word by word: what stayed, what went, what came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

_PIECE = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|\w+|[^\w\s]")
_MOST_PIECES = 1500  # the comparing is quadratic

Kind = Literal["same", "removed", "added", "left_out"]


class Piece(NamedTuple):
    """A run of text; `left_out` stands for an end that was not compared, its text says how long it is."""

    kind: Kind
    text: str


def word_changes(before: str, after: str) -> list[Piece]:
    """The pieces of both texts in order. Of long texts the beginnings are compared."""
    left, right = _PIECE.findall(before), _PIECE.findall(after)
    pieces = list(_merged(left[:_MOST_PIECES], right[:_MOST_PIECES]))
    num_left_out = sum(map(len, left[_MOST_PIECES:])) + sum(map(len, right[_MOST_PIECES:]))
    if num_left_out:
        pieces.append(Piece("left_out", f"{num_left_out:,} characters"))
    return pieces


def _merged(left: list[str], right: list[str]) -> Iterator[Piece]:
    for kind, i, j, m, n in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            yield Piece("same", "".join(left[i:j]))
            continue
        if j > i:
            yield Piece("removed", "".join(left[i:j]))
        if n > m:
            yield Piece("added", "".join(right[m:n]))
