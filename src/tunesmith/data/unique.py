"""Rows of a JSONL file of any form, of which the first with each value of a field stays: the whole filter program of
Lamini's data generator. Streams; holds one digest per value. Knows no conversations, so that rows nobody could learn from
are still counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tunesmith.errors import DataError
from tunesmith.hashing import canonical_json
from tunesmith.text.jsonl import RecordLog
from tunesmith.types import Excluded


def keep_unique(path: Path, field: str, out_dir: Path) -> dict[str, int]:
    """Writes out_dir/kept.jsonl (the lines as they were) and out_dir/excluded.jsonl; returns the counts, which add up:
    rows_in = kept + excluded_exact (a value again) + excluded_bad_row (no JSON object, or without the field).

    DataError where the file cannot be read, or no row has the field.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    excluded = out_dir / "excluded.jsonl"
    excluded.unlink(missing_ok=True)
    counts = Counter[str]()
    first: dict[bytes, int] = {}
    with (out_dir / "kept.jsonl").open("wb") as kept, RecordLog(excluded) as log:
        for number, line in _lines(path):
            counts["rows_in"] += 1
            row = _parsed(line)
            if not isinstance(row, dict) or field not in row:
                found = f"the row has no field {field!r}" if isinstance(row, dict) else "the line is no JSON object"
                log.append(Excluded(reason="bad_row", detail=found, where=f"{path.name}:{number}", raw=row))
                counts["excluded_bad_row"] += 1
                continue
            earlier = first.setdefault(hashlib.blake2b(canonical_json(row[field]), digest_size=16).digest(), number)
            if earlier == number:
                kept.write(line.rstrip(b"\r\n") + b"\n")
                counts["kept"] += 1
            else:
                detail = f"the {field} of {path.name}:{earlier}"
                log.append(Excluded(reason="exact", detail=detail, where=f"{path.name}:{number}", field=field, raw=row))
                counts["excluded_exact"] += 1
    if not counts["kept"]:
        raise DataError(
            f"none of {counts['rows_in']:,} rows has the field {field!r}",
            where=path.name,
            hint="name a field of the rows; a row is one JSON object a line",
        )
    return dict(counts)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return line.decode("utf-8", "replace").strip()
