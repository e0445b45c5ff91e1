"""Writes tiny GGUF files, whole or damaged, for tests of the header reader."""

from __future__ import annotations

import struct
from typing import Any


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, list) and isinstance(item[0], str):
        return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(text(entry) for entry in item)
    return struct.pack("<IIQ", 9, 5, len(item)) + b"".join(struct.pack("<i", entry) for entry in item)


def gguf(metadata: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None, *, cut: int = 0) -> bytes:
    """A GGUF file with F32 tensors of the given shapes; `cut` bytes are missing at its end."""
    tensors = tensors or {}
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, item in metadata.items():
        body += text(key) + value(item)
    offset = 0
    for name, shape in tensors.items():
        size = 4
        for dim in shape:
            size *= dim
        body += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)
        offset += -(-size // 32) * 32
    body += b"\0" * (-len(body) % 32) + b"\0" * offset
    return body[: len(body) - cut]


HEADER: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["<|end|>", "Hi", "Ġthere", "X", "ðŁ", "Ĳ", "Ŀ", "Ċ"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1],
}
