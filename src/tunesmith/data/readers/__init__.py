"""Readers of example files, one small module per shape of rows. The shape is recognised by looking at the rows."""

from __future__ import annotations

from tunesmith.data.readers.read import EMPTY_FILE, READERS, map_examples, read_examples

__all__ = ["EMPTY_FILE", "READERS", "map_examples", "read_examples"]
