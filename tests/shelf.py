"""A store that takes finished stages from a shelf and puts them there: tests whose recipes begin alike run the beginning once."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from tunesmith.store import Identity, Store
from tunesmith.types import Artifact, Outcome

BEFORE_TRAINING = ("base_model", "ingest", "curate", "tokenize")


class ShelfStore(Store):
    """One root, and the artifacts of some stages as copies of a shelf's, by their keys: a test may damage its own."""

    def __init__(self, root: Path, shelf: Path, stages: Collection[str] = BEFORE_TRAINING) -> None:
        super().__init__(root)
        self._shelf, self._stages = Store(shelf), stages

    def find(self, identity: Identity) -> Artifact | None:
        here, there = self.artifact_dir(identity), self._shelf.artifact_dir(identity)
        if identity.stage in self._stages and there.is_dir() and not here.exists():
            shutil.copytree(there, here)
        return super().find(identity)

    def commit(self, identity: Identity, outcome: Outcome, seconds: float) -> Artifact:
        made, there = super().commit(identity, outcome, seconds), self._shelf.artifact_dir(identity)
        if identity.stage in self._stages and not there.exists():
            shutil.copytree(made.path, there)
        return made
