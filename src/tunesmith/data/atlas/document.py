"""The map as one JSON value: what the page shows, and what can be dropped on it. Described in docs/seeing-data.md.

Owns the format and how much text a map holds. Knows nothing of HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from tunesmith.data.atlas.groupings import Grouping
from tunesmith.data.atlas.rows import MapRow

FORMAT_VERSION = 1

_TEXT_BUDGET = 32_000_000
"""Characters of text in one map. 50,000 rows of Alpaca have 20 million; a browser takes half a second for 32."""

_LONGEST_METADATA = 2_000
_DECIMALS = 4  # of coordinates in -1 .. 1: a twentieth of a pixel on a large screen


@dataclass(frozen=True)
class Projection:
    """One layout: three coordinates a row, in -1 .. 1."""

    name: str
    title: str
    note: str
    coordinates: np.ndarray  # (N, 3)


@dataclass
class MapDocument:
    """Everything the page shows. `pending` names the projection that is still being computed."""

    title: str
    embedding: str
    rows: Sequence[MapRow]
    groupings: Sequence[Grouping]
    projections: list[Projection]
    counts: Mapping[str, int]
    notes: list[str] = field(default_factory=list)
    pending: str | None = None


def fitted(coordinates: np.ndarray) -> np.ndarray:
    """Coordinates (N, 3) moved and scaled, all axes alike, so that the farthest row is at distance 1 from the middle."""
    if not len(coordinates):
        return coordinates
    moved = coordinates - (coordinates.max(axis=0) + coordinates.min(axis=0)) / 2
    return moved / max(float(np.linalg.norm(moved, axis=1).max()), 1e-9)


def as_json(document: MapDocument) -> dict[str, Any]:
    """The JSON value. Long turns are cut so that all texts together fit; each says how much is left out."""
    limit = turn_limit([len(turn.text) for row in document.rows for turn in row.turns], _TEXT_BUDGET)
    return {
        "tunesmith_map": FORMAT_VERSION,
        "title": document.title,
        "embedding": document.embedding,
        "counts": dict(document.counts),
        "notes": list(document.notes),
        **({"pending": document.pending} if document.pending else {}),
        "projections": [
            {
                "name": projection.name,
                "title": projection.title,
                "note": projection.note,
                "points": np.round(projection.coordinates.astype(np.float64), _DECIMALS).ravel().tolist(),
            }
            for projection in document.projections
        ],
        "groupings": [grouping._asdict() for grouping in document.groupings],
        "rows": [_row(row, limit) for row in document.rows],
    }


def encoded(data: dict[str, Any]) -> bytes:
    """The value as JSON. Half a surrogate pair, which a row as found may hold, becomes a question mark."""
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def turn_limit(lengths: Sequence[int], budget: int) -> int:
    """The longest a text may be so that all, cut to it, have at most `budget` characters together."""
    left, limit = budget, 0
    ordered = sorted(lengths)
    for number, length in enumerate(ordered):
        share = left // (len(ordered) - number)
        if length > share:
            return share
        limit, left = length, left - length
    return limit


def _row(row: MapRow, limit: int) -> dict[str, Any]:
    optional = {
        "split": row.split,
        "licence": row.licence,
        "reason": row.reason,
        "detail": row.detail,
        "metadata": {key: _short(value) for key, value in row.metadata.items()},
    }
    turns: list[dict[str, Any]] = []
    for turn in row.turns:
        left_out = len(turn.text) - limit
        turns.append(
            {
                "role": turn.role,
                "text": turn.text[:limit] if left_out > 0 else turn.text,
                **({"omitted": left_out} if left_out > 0 else {}),
            }
        )
    return {
        "id": row.row_id,
        "source": row.source,
        **{key: value for key, value in optional.items() if value},
        "turns": turns,
    }


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_METADATA else f"{text[:_LONGEST_METADATA]}…"
