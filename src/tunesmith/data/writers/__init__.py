"""Writers of example files, one small module per form. What a form cannot hold is counted by name, never dropped in silence."""

from __future__ import annotations

from tunesmith.data.writers.write import WRITERS, Written, write_examples

__all__ = ["WRITERS", "Written", "write_examples"]
