"""The models that have a name of their own: catalog.yaml, read. Knows what they are, not how they are fetched."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class BuiltIn:
    """One entry of catalog.yaml."""

    name: str
    purpose: str
    hub: str
    licence: str
    num_parameters: int
    packages: tuple[tuple[str, str], ...]  # (requirement, member)
    wheel_sha256: tuple[str, ...]
    download_bytes: int
    gguf_bytes: int
    gguf_sha256: str
    folder_bytes: int

    @property
    def folder_name(self) -> str:
        """Name of its cache entries."""
        return f"{self.name}-{self.gguf_sha256[:8]}"


@functools.cache
def built_in_models() -> dict[str, BuiltIn]:
    """The catalog."""
    raw: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "catalog.yaml").read_text(encoding="utf-8"))
    models = {}
    for name, entry in raw.items():
        slices = entry.pop("slices", 1)
        pairs = zip(entry.pop("packages"), entry.pop("members"), strict=True)
        parts = tuple(
            (package.format(n=n), member.format(n=n)) for package, member in pairs for n in range(1, slices + 1)
        )
        wheels = tuple(entry.pop("wheel_sha256", ()))
        models[name] = BuiltIn(name=name, packages=parts, wheel_sha256=wheels, **entry)
    return models
