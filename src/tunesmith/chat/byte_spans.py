"""Which characters of a text each token stands for, from how many bytes each id of a byte-level vocabulary is.

A byte-level tokenizer writes every byte of a text into exactly one token, so lengths add up to places, and the tokenizer need not
keep them. Only for tokenizers that leave the text as it is; where the bytes of some text do not add up after all, there is no
answer. Knows nothing of templates and control tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_KEEPS_TEXT = frozenset({"ByteLevel", "Digits", "Punctuation", "Split"})
_CONTINUES = 0x80  # 0b10xxxxxx: a byte inside a character
_TOP_BITS = 0xC0


def byte_lengths(tokenizer: Tokenizer, description: dict[str, Any]) -> NDArray[np.int64] | None:
    """(V,) bytes that each id stands for; None where the tokenizer is not byte-level or may change the text.

    description: its tokenizer.json; tokens may have been added since.
    """
    steps = pre_tokenizer_steps(description.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    model = description["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    if description.get("normalizer") is not None or "ByteLevel" not in kinds:
        return None
    if not _KEEPS_TEXT.issuperset(kinds):
        return None
    if any(step.get("add_prefix_space") or step.get("behavior") == "Removed" for step in steps):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    indices = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
    lengths[indices] = np.fromiter(map(len, vocabulary), np.int64, len(vocabulary))  # a character of a piece is a byte
    for index, token in tokenizer.get_added_tokens_decoder().items():
        lengths[index] = len(token.content.encode())
    return lengths


def spans(
    text: str, input_ids: NDArray[np.int32], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """(T,) first and (T,) one past the last character of each token; a token that is a part of a character has all of it.

    None where the tokens are not as many bytes as the text.
    """
    sizes = lengths[input_ids]
    ends = np.cumsum(sizes)
    starts = ends - sizes
    if text.isascii():
        return (starts, ends) if int(sizes.sum()) == len(text) else None
    data = np.frombuffer(text.encode(), np.uint8)
    if int(sizes.sum()) != len(data) or not sizes.all():
        return None
    character = np.cumsum((data & _TOP_BITS) != _CONTINUES) - 1  # of each byte
    return character[starts], character[ends - 1] + 1


def pre_tokenizer_steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer as the list of its steps."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return [step for each in pre_tokenizer["pretokenizers"] for step in pre_tokenizer_steps(each)]
    return [pre_tokenizer]
