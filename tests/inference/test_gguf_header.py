"""The header reader: what it finds, and that no damaged file gets past it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf_files import HEADER, gguf, text

from tunesmith.errors import ModelError
from tunesmith.inference.gguf_header import read_header


def _write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def test_architecture_context_and_vocabulary_are_read(tmp_path: Path) -> None:
    header = read_header(_write(tmp_path, gguf(HEADER, {"w": (32, 4)})))
    assert (header.architecture, header.context_length, len(header.tokens)) == ("llama", 512, 8)


def test_tokens_become_the_bytes_they_stand_for(tmp_path: Path) -> None:
    header = read_header(_write(tmp_path, gguf(HEADER)))
    assert [header.token_bytes(i) for i in (1, 2, 4, 5, 6, 7)] == [
        b"Hi", b" there", b"\xf0\x9f", b"\x90", b"\x9d", b"\n",
    ]  # fmt: skip
    assert header.token_bytes(0) == b"<|end|>" and header.is_control(0) and not header.is_control(1)


def test_sentencepiece_tokens_become_bytes(tmp_path: Path) -> None:
    metadata = {
        **HEADER,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["</s>", "<0x0A>", "▁Hello"],
        "tokenizer.ggml.token_type": [3, 6, 1],
    }
    header = read_header(_write(tmp_path, gguf(metadata)))
    assert [header.token_bytes(i) for i in (1, 2)] == [b"\n", b" Hello"]


def test_an_unknown_token_id_is_an_error(tmp_path: Path) -> None:
    header = read_header(_write(tmp_path, gguf(HEADER)))
    with pytest.raises(ModelError, match="token id 8 is not in the vocabulary of 8"):
        header.token_bytes(8)


def _with_huge_text(data: bytes) -> bytes:
    place = data.index(text("llama"))
    return data[:place] + struct.pack("<Q", 1 << 60) + data[place + 8 :]


_WHOLE = gguf(HEADER, {"w": (32, 4)})


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "0 bytes are too few"),
        (b"hello world, this is a text file and no model", "it starts with b'hell'"),
        (b"GGUF" + struct.pack("<I", 1) + b"\0" * 64, "GGUF version 1"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 64, "GGUF version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 50, 1), "damaged GGUF header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 32, "no key general.architecture"),
        (gguf(HEADER, {"w": (32, 4)}, cut=1), "tensor 'w' needs bytes up to"),
        (_WHOLE[:100], "GGUF header|ends inside its header"),
        (_with_huge_text(_WHOLE), "a text of 1152921504606846976 bytes"),
        (gguf({**HEADER, "general.alignment": 0}), "alignment 0"),
        (_WHOLE.replace(struct.pack("<QQ", 32, 4), struct.pack("<QQ", 1 << 62, 1 << 62)), "needs bytes up to"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_what_was_found(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(ModelError, match=found):
        read_header(_write(tmp_path, data))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_header(tmp_path / "absent.gguf")


def test_a_header_cut_at_any_byte_raises_model_error_and_nothing_else(tmp_path: Path) -> None:
    for length in range(len(_WHOLE)):
        with pytest.raises(ModelError):
            read_header(_write(tmp_path, _WHOLE[:length]))
