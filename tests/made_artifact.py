"""Artifacts of stages that did not run: a folder, and a manifest that says what a test needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.types import Artifact, Manifest


def made_manifest(kind: str, facts: dict[str, Any] | None = None, **fields: Any) -> Manifest:
    empty: dict[str, Any] = {"section": {}, "inputs": {}, "counts": {}, "files": {}, "provenance": {}}
    named = {"stage": kind, "stage_version": 1, "key": "k", "digest": "d", "facts": facts or {}}
    return Manifest(kind=kind, **{**empty, **named, **fields})


def artifact(path: Path, kind: str, facts: dict[str, Any] | None = None, **fields: Any) -> Artifact:
    return Artifact(path, made_manifest(kind, facts, **fields))
