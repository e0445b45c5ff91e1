"""Tokenizer, matrices and config of a model folder looked at together: the places where extended models go wrong.

Known from others: a matrix of 49,953 rows under a tokenizer of 49,954; a config that still says the old size; a special
token that moved; added tokens that put stray spaces into text. Reads headers and JSON, and tokenises; loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from tunesmith.chat.pieces import from_byte_level
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.errors import ModelError
from tunesmith.model.folder import read_config, read_safetensors_header, weight_files
from tunesmith.model.vocabulary.base import TOKENIZER, BaseTokenizer
from tunesmith.model.vocabulary.extension import Extension, extend_description

_HINT = "this folder must not be used; run the stage again, and report it where that does not help"


def check_folder(folder: Path, base: BaseTokenizer, extension: Extension, texts: Sequence[str]) -> None:
    """ModelError where any of these does not hold:

    - every old token keeps its id, every new piece has the one it was given, and new merges follow the old ones;
    - config.vocab_size is the number of rows of the embedding and of the output head, and no id is beyond it;
    - each text comes back from its ids as it did before, and its new tokens are its old ones, joined;
    - the tokenizer as transformers loads it gives the same ids as the file.
    """
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    _check_ids(tokenizer, base, extension, folder)
    _check_sizes(folder, extension)
    _check_texts(tokenizer, base, extension, texts, folder)
    loaded = load_tokenizer(folder).backend_tokenizer
    for text in texts:
        if loaded.encode(text, add_special_tokens=False).ids != tokenizer.encode(text, add_special_tokens=False).ids:
            raise _wrong(f"transformers cuts {text[:40]!r} in another way than tokenizer.json says", folder)


def _check_ids(tokenizer: Tokenizer, base: BaseTokenizer, extension: Extension, folder: Path) -> None:
    new = {piece: extension.first_id + place for place, piece in enumerate(extension.pieces)}
    found = tokenizer.get_vocab(with_added_tokens=True)
    for piece, index in {**base.vocabulary, **new}.items():
        if found.get(piece) != index:
            raise _wrong(f"the token {piece!r} has id {found.get(piece)}, expected {index}", folder)
    if len(found) != len(base.vocabulary) + len(new):
        raise _wrong(f"{len(found)} tokens, expected {len(base.vocabulary)} old and {len(new)} new ones", folder)
    merges = json.loads((folder / TOKENIZER).read_bytes())["model"]["merges"]
    if merges != extend_description(base, extension)["model"]["merges"]:
        raise _wrong("the merges are not the old ones followed by the new ones", folder)


def _check_sizes(folder: Path, extension: Extension) -> None:
    config = read_config(folder)
    size = int((config.get("text_config") or config).get("vocab_size") or 0)
    shapes = {
        name: entry["shape"]
        for file in weight_files(folder)
        for name, entry in read_safetensors_header(file).items()
        if name.rpartition(".")[0].endswith(_MATRICES)
    }
    if not shapes:
        raise _wrong("there is no embedding matrix in the weights", folder)
    for name, shape in shapes.items():
        if shape[0] != size:
            raise _wrong(f"{name} has {shape[0]} rows, config.json says vocab_size {size}", folder)
    if extension.size > size:
        raise _wrong(f"the tokenizer has ids up to {extension.size - 1}, the model {size} rows", folder)


_MATRICES = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")
"""Modules with one row per id, by the names that transformers gives them."""


def _check_texts(
    tokenizer: Tokenizer, base: BaseTokenizer, extension: Extension, texts: Sequence[str], folder: Path
) -> None:
    for text in texts:
        old = base.tokenizer.encode(text, add_special_tokens=False).ids
        new = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.decode(new, skip_special_tokens=False) != base.tokenizer.decode(old, skip_special_tokens=False):
            raise _wrong(f"{text[:40]!r} does not come back from its new ids", folder)
        if not joins(base, extension, old, new):
            raise _wrong(f"the new tokens of {text[:40]!r} are not its old ones, joined", folder)


def joins(base: BaseTokenizer, extension: Extension, old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether each new token is an old one, or the bytes of the old ones in its place."""
    place = 0
    for index in new:
        if index < extension.first_id:
            if place >= len(old) or old[place] != index:
                return False
            place += 1
            continue
        wanted = from_byte_level(extension.pieces[index - extension.first_id])
        found = b""
        while len(found) < len(wanted) and place < len(old):
            found += base.pieces.get(old[place], b"")
            place += 1
        if found != wanted:
            return False
    return place == len(old)


def _wrong(message: str, folder: Path) -> ModelError:
    return ModelError(message, where=str(folder), hint=_HINT)
