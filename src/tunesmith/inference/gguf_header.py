"""Reads the header of a GGUF file: metadata, vocabulary, tensor sizes; refuses a file that is cut, damaged or not GGUF.

Owns the check that must pass before native code may map the file: every length is compared with the bytes that are
really there. Knows nothing of engines. Format: ggml-org/ggml docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.chat.pieces import from_byte_level, from_sentencepiece
from tunesmith.errors import ModelError

_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_DIMS = 4
_MAX_TENSORS = 1_000_000
_MAX_KEYS = 100_000
_CONTROL = 3  # token type: never spelled by ordinary text

# ggml tensor type -> (values in a block, bytes of a block); a type that is not listed is left to llama.cpp
_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    20: (32, 18),  # IQ4_NL
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    30: (1, 2),  # BF16
}


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]  # key -> scalar or string; of arrays only the vocabulary's are kept
    tokens: tuple[bytes, ...]  # as stored: byte-level BPE alphabet, or "▁" for a space
    token_types: tuple[int, ...]

    @property
    def architecture(self) -> str:
        """Name of the model family ("llama")."""
        return str(self.metadata["general.architecture"])

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained to see at once, where the file says so."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return int(value) if value is not None else None

    def is_control(self, token_id: int) -> bool:
        """Whether ordinary text can never spell this token."""
        return token_id < len(self.token_types) and self.token_types[token_id] == _CONTROL

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for. Raises ModelError where there is no such id."""
        if not 0 <= token_id < len(self.tokens):
            raise ModelError(f"token id {token_id} is not in the vocabulary of {len(self.tokens)} tokens")
        stored = self.tokens[token_id]
        if self.is_control(token_id):
            return stored
        text = stored.decode("utf-8", "replace")
        is_byte_level = self.metadata.get("tokenizer.ggml.model") == "gpt2"
        return from_byte_level(text) if is_byte_level else from_sentencepiece(text)


def read_header(path: Path) -> GgufHeader:
    """Read and check a GGUF file. Raises ModelError that says what was found where and what was expected."""
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path), hint="name a .gguf file that exists")
    size = path.stat().st_size
    if size < 24:
        raise ModelError(f"{size} bytes are too few for a GGUF file", where=str(path), hint=_REFETCH)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Cursor(data, path).header()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ModelError(
                f"the file ends inside its header ({size} bytes; {error})", where=str(path), hint=_REFETCH
            ) from error


_REFETCH = "the file is cut or damaged: fetch or export it again"


class _Cursor:
    """Walks through the header. Each read is bounded by the size of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._place = 0

    def header(self) -> GgufHeader:
        magic = self._data[:4]
        if magic != b"GGUF":
            raise ModelError(f"not a GGUF file: it starts with {magic!r}, expected b'GGUF'", where=str(self._path))
        self._place = 4
        version = self._read(_U32)
        if version not in (2, 3):
            raise ModelError(f"GGUF version {version}, expected 2 or 3 (little endian)", where=str(self._path))
        num_tensors, num_keys = self._read(_U64), self._read(_U64)
        if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
            raise self._damaged(f"{num_tensors} tensors and {num_keys} keys")
        metadata: dict[str, Any] = {}
        tokens: tuple[bytes, ...] = ()
        token_types: tuple[int, ...] = ()
        for _ in range(num_keys):
            key = self._string().decode()
            value = self._value(self._read(_U32), keep=key in _KEPT_ARRAYS)
            if key == "tokenizer.ggml.tokens":
                tokens = tuple(value)
            elif key == "tokenizer.ggml.token_type":
                token_types = tuple(value)
            elif value is not None:
                metadata[key] = value
        if "general.architecture" not in metadata:
            raise self._damaged("no key general.architecture")
        self._check_tensors(num_tensors, int(metadata.get("general.alignment", 32)))
        return GgufHeader(metadata, tokens, token_types)

    def _check_tensors(self, num_tensors: int, alignment: int) -> None:
        if alignment < 1 or alignment > 1 << 20:
            raise self._damaged(f"alignment {alignment}")
        spans: list[tuple[str, int, int]] = []
        for _ in range(num_tensors):
            name = self._string().decode("utf-8", "replace")
            num_dims = self._read(_U32)
            if num_dims > _MAX_DIMS:
                raise self._damaged(f"tensor {name[:80]!r} with {num_dims} dimensions")
            shape = [self._read(_U64) for _ in range(num_dims)]
            kind, offset = self._read(_U32), self._read(_U64)
            values, size_bytes = _BLOCKS.get(kind, (0, 0))
            spans.append((name, offset, prod(shape) // values * size_bytes if values else 0))
        start = -(-self._place // alignment) * alignment
        for name, offset, size_bytes in spans:
            if start + offset + size_bytes > len(self._data):
                raise ModelError(
                    f"tensor {name[:80]!r} needs bytes up to {start + offset + size_bytes}, the file has {len(self._data)}",
                    where=str(self._path),
                    hint=_REFETCH,
                )

    def _read(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self._place)
        self._place += form.size
        return value

    def _string(self) -> bytes:
        length = self._read(_U64)
        end = self._place + length
        if end > len(self._data):
            raise self._damaged(f"a text of {length} bytes at byte {self._place}")
        value = self._data[self._place : end]
        self._place = end
        return value

    def _value(self, kind: int, *, keep: bool) -> Any:
        if kind in _SCALARS:
            return self._read(_SCALARS[kind])
        if kind == _STRING:
            return self._string().decode("utf-8", "replace")
        if kind != _ARRAY:
            raise self._damaged(f"a value of type {kind} at byte {self._place}")
        inner, count = self._read(_U32), self._read(_U64)
        if count > len(self._data):
            raise self._damaged(f"an array of {count} values at byte {self._place}")
        if inner == _STRING:
            values = [self._string() for _ in range(count)]
            return values if keep else None
        if inner not in _SCALARS:
            raise self._damaged(f"an array of type {inner} at byte {self._place}")
        form = struct.Struct(f"<{count}{_SCALARS[inner].format[1:]}")
        values = form.unpack_from(self._data, self._place) if keep else None
        self._place += form.size
        return values

    def _damaged(self, found: str) -> ModelError:
        return ModelError(f"damaged GGUF header: {found}", where=str(self._path), hint=_REFETCH)


_KEPT_ARRAYS = frozenset({"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"})
