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
from tunesmith.store import disk_error
from tunesmith.text.jsonl import RecordLog
from tunesmith.types import Excluded


def excluded_path(target: Path) -> Path:
    """The file beside `target` for the rows that went, each with its reason."""
    return target.with_name(f"{target.name}.excluded.jsonl")


def keep_unique(path: Path, field: str, target: Path) -> dict[str, int]:
    """Writes the kept lines, as they were, to `target`, which stands there only when it is whole, and the others to
    excluded_path(target). Returns the counts, which add up: rows_in = kept + excluded_exact (a value again) +
    excluded_bad_row (no JSON object, or without the field).

    DataError where the file cannot be read, or no row has the field; StoreError where the disk is full.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        counts = _write_unique(path, field, temporary, excluded_path(target))
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, target, 0) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return counts


def _write_unique(path: Path, field: str, target: Path, excluded: Path) -> dict[str, int]:
    counts = Counter[str]()
    first: dict[bytes, int] = {}
    excluded.unlink(missing_ok=True)
    with target.open("wb") as kept, RecordLog(excluded) as log:
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
