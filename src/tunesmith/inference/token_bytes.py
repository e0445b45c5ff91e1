"""The bytes each token id stands for, from a tokenizer.json. Log probabilities need them: half a character has no text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson

from tunesmith.chat.pieces import from_byte_level, from_sentencepiece
from tunesmith.errors import ModelError


class TokenBytes:
    """Token id -> bytes."""

    def __init__(self, tokens: dict[int, str], special: frozenset[int], convert: Callable[[str], bytes]) -> None:
        self._tokens = tokens
        self._special = special
        self._convert = convert

    @classmethod
    def from_folder(cls, folder: Path) -> TokenBytes:
        """From the tokenizer.json of a model folder. Raises ModelError where there is none."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError("there is no tokenizer.json, which log probabilities need", where=str(folder))
        description = orjson.loads(path.read_bytes())
        vocabulary = description["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((pair[0], i) for i, pair in enumerate(vocabulary))
        )
        tokens = {index: token for token, index in pairs}
        added = {token["id"]: token["content"] for token in description["added_tokens"]}
        special = frozenset(token["id"] for token in description["added_tokens"] if token["special"])
        is_byte_level = "ByteLevel" in orjson.dumps(description.get("decoder")).decode()
        return cls({**tokens, **added}, special, from_byte_level if is_byte_level else from_sentencepiece)

    def __getitem__(self, token_id: int) -> bytes:
        token = self._tokens.get(token_id)
        if token is None:
            raise ModelError(f"token id {token_id} is not in the vocabulary of {len(self._tokens)} tokens")
        return token.encode() if token_id in self._special else self._convert(token)

    def is_special(self, token_id: int) -> bool:
        """Whether ordinary text never becomes this token."""
        return token_id in self._special
