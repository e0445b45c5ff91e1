"""A SentencePiece .model file of ten pieces, written by hand."""

from __future__ import annotations

import struct


def model_bytes(pieces: list[tuple[str, float, int]]) -> bytes:
    """A .model file by hand: field 1 repeats (text, score, type)."""

    def field(number: int, value: bytes) -> bytes:
        return bytes([number << 3 | 2, *varint(len(value))]) + value

    def varint(value: int) -> list[int]:
        return [value] if value < 128 else [value & 127 | 128, *varint(value >> 7)]

    out = b""
    for text, score, kind in pieces:
        body = field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + bytes([3 << 3, kind])
        out += field(1, body)
    return out + field(2, b"\x08\x01")


PIECES = [
    ("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("a", -2.0, 1), ("自", -3.0, 1), ("行", -3.5, 1), ("自行车", -4.0, 1),
    ("订单", -4.5, 1), ("▁我", -5.0, 1), ("20", -6.0, 1), ("，我", -6.5, 1),
]  # fmt: skip
