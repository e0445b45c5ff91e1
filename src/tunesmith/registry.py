"""Lazy registries: a recipe names a member by string, and the module behind it is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.errors import RecipeError, nearest


class Registry(Mapping[str, str]):
    """Maps a member's name to `module:attribute`, and loads it on demand.

    `kind` is the word used in error messages ("generator"). Reading the names imports nothing.
    """

    def __init__(self, kind: str, members: Mapping[str, str]) -> None:
        self.kind = kind
        self._members = dict(members)

    def load(self, name: str, *, where: str | None = None) -> Any:
        """Import and return the member. Raises RecipeError with the nearest name where there is none."""
        if name not in self._members:
            close = nearest(name, self._members)
            raise RecipeError(
                f"there is no {self.kind} named {name!r}",
                where=where,
                hint=f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(self._members))}",
            )
        module_name, _, attribute = self._members[name].partition(":")
        return getattr(importlib.import_module(module_name), attribute)

    def __getitem__(self, name: str) -> str:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
