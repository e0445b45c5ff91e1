"""tunesmith: turn an open base model into your own assistant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "__version__"]

if TYPE_CHECKING:
    from tunesmith.api import Engine


def __getattr__(name: str) -> Any:
    if name == "Engine":  # imported on first use: `import tunesmith` stays light
        from tunesmith.api import Engine

        return Engine
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
