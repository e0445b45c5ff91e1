"""Ends a streamed answer at a stop string, wherever the pieces are cut. Knows text only, no engine.

llama.cpp's own matching loses held-back text when an answer ends for another reason inside a half-matched stop
string (measured: "hello world and" came out as "hello"), so the engine is never given stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Feed pieces of text, get back what may be shown; `matched` says that a stop string was found."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.matched = False

    def feed(self, piece: str) -> str:
        """Text that can no longer become part of a stop string. After a match: the text before the stop string."""
        if self.matched:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends in."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
