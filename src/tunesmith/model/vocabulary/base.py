"""A byte-level BPE tokenizer as its tokenizer.json has it: how it cuts text into words, and a word into tokens.

Owns what growing a vocabulary needs to know of the old one, and refuses tokenizers of another kind. Knows no models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tunesmith.chat.pieces import from_byte_level
from tunesmith.errors import ModelError

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class BaseTokenizer:
    """The tokenizer that is extended. A word is a stretch of text that no token reaches across, a piece the text of one
    token; both are written in the byte-level alphabet (one character a byte)."""

    path: Path
    description: dict[str, Any]  # tokenizer.json
    tokenizer: Tokenizer

    @classmethod
    def load(cls, model_dir: Path) -> BaseTokenizer:
        """Read the tokenizer of a model folder. ModelError where it is none that can be extended."""
        path = model_dir / TOKENIZER
        if not path.is_file():
            raise ModelError("there is no tokenizer.json, which a learned vocabulary extends", where=str(model_dir))
        try:
            description: dict[str, Any] = json.loads(path.read_bytes())
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ModelError(f"the tokenizer cannot be read: {error}", where=str(path)) from error
        _refuse_other_kinds(description, path)
        return cls(path, description, tokenizer)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id, added tokens included."""
        return dict(self.tokenizer.get_vocab(with_added_tokens=True))

    @cached_property
    def added(self) -> dict[str, int]:
        """Text -> id of the added tokens: they are found in text as they stand, and are no pieces."""
        return {token["content"]: int(token["id"]) for token in self.description["added_tokens"]}

    @property
    def first_free_id(self) -> int:
        """The id after the largest one in use."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """Id -> bytes of every piece; added tokens have none."""
        added = set(self.added.values())
        return {index: from_byte_level(piece) for piece, index in self.vocabulary.items() if index not in added}

    def words(self, text: str) -> list[str]:
        """The words of a text. Control strings in it are ordinary text, as in anything a person wrote."""
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        assert self.tokenizer.pre_tokenizer is not None
        return [word for word, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    def count_words(self, texts: Iterable[str]) -> Counter[str]:
        """How often each word occurs in all texts together."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self.words(text))
        return counts

    def cut(self, word: str) -> list[int]:
        """Ids of one word, or of any other string of the byte-level alphabet."""
        return [token.id for token in self.tokenizer.model.tokenize(word)]

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, nothing added to it and control strings taken as ordinary text."""
        return sum(len(self.cut(word)) for word in self.words(text))


def _refuse_other_kinds(description: dict[str, Any], path: Path) -> None:
    model = description["model"]
    hint = "byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, Phi and their like) can be extended"
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback (SentencePiece)" if model.get("type") == "BPE" else model.get("type")
        raise ModelError(f"expected a byte-level BPE tokenizer, found {kind}", where=str(path), hint=hint)
    if "ByteLevel" not in json.dumps(description.get("pre_tokenizer")):
        raise ModelError("expected a byte-level pre-tokenizer, found another", where=str(path), hint=hint)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ModelError(f"its BPE has `{key}`, which cannot be continued", where=str(path), hint=hint)
