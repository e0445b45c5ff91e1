"""Digests: canonical JSON, files, text. One way to hash each thing, used by keys, ids and manifests alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8. NaN and infinities are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def digest_json(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_text(text: str) -> str:
    """sha256 (64 hex digits) of UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes, read in blocks of 1 MiB."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()


def digest_path(path: Path) -> str:
    """Of a file, its digest; of a folder, sha256 over the names and digests of all files in it."""
    if path.is_file():
        return digest_file(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return digest_json([[entry.relative_to(path).as_posix(), digest_file(entry)] for entry in files])
