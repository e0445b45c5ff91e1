"""The export formats by name, and the names of the files they become."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import RecipeError, nearest

SAFETENSORS = "safetensors"
GGUF_FORMATS = {"gguf-f16": "f16", "gguf-q8_0": "q8_0", "gguf-q4_k_m": "q4_k_m"}
_WHERE = "recipe.export.formats"


@dataclass(frozen=True)
class WantedFormats:
    """What a recipe asks for, in its order."""

    safetensors: bool
    quantisations: tuple[str, ...]


def parse_formats(names: Sequence[str]) -> WantedFormats:
    """RecipeError for an unknown name (with the nearest one), a repeated one, or none at all."""
    known = (SAFETENSORS, *GGUF_FORMATS)
    for name in names:
        if name not in known:
            close = nearest(name, known)
            raise RecipeError(
                f"there is no export format named {name!r}",
                where=_WHERE,
                hint=f"did you mean {close!r}?" if close else f"known: {', '.join(known)}",
            )
    if not names or len(set(names)) < len(names):
        raise RecipeError("a format is named twice" if names else "no format is named", where=_WHERE)
    return WantedFormats(SAFETENSORS in names, tuple(GGUF_FORMATS[name] for name in names if name in GGUF_FORMATS))


def export_name(base_name: str) -> str:
    """Name of the tuned model, fit for a file: the last part of the base model's, `-tuned`."""
    last = base_name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', last).strip('-.') or 'model'}-tuned"


def gguf_name(name: str, quantisation: str) -> str:
    """File name of a GGUF format."""
    return f"{name}-{quantisation}.gguf"
