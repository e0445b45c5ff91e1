"""The bytes that a piece of a vocabulary stands for, in the two ways in which vocabularies write bytes as text. One piece may
hold only a part of a character. Knows no tokenizer and no ids."""

from __future__ import annotations


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable bytes stand for themselves, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def from_byte_level(token: str) -> bytes:
    """Bytes of a token of byte-level BPE; text outside its alphabet stands for itself."""
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def from_sentencepiece(token: str) -> bytes:
    """Bytes of a token that writes a space as U+2581 and a lone byte as <0xNN>."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
