"""Token ids of texts, each word encoded once: words come again and again, and a dictionary is faster than merging bytes.

A text is cut where one space stands between two printable ASCII characters, before the space. There every pre-tokenizer named
here cuts too, whatever else it does, and a model of byte-level BPE encodes what lies between cuts by itself; so the ids
are those of the whole text. Other tokenizers get no memory. Knows nothing of templates and control tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tunesmith.chat.byte_spans import pre_tokenizer_steps

_CUT = re.compile("(?<=[!-~])(?= [!-~])")

# Llama 3, and what goes back to it
_LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Qwen 2 and 3: one digit at a time
_QWEN = _LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = frozenset({_LLAMA, _QWEN})
"""No alternative goes on from a printable character to a space, and none that begins with a space begins before it."""

_MOST_CHARACTERS = 1_000_000
"""Of all words together; then the memory begins anew. A million take about 40 MB, in English and in Chinese."""


class WordMemory:
    """Encodes texts with a tokenizer, which must not change afterwards. Made by `remember`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._num_characters = 0

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """(T,) ids of each text, no special tokens added."""
        if self._num_characters > _MOST_CHARACTERS:
            self._ids, self._num_characters = {}, 0
        ids = self._ids  # of this call, whatever another thread does
        cut = [_CUT.split(text) for text in texts]
        new = [word for word in dict.fromkeys(itertools.chain.from_iterable(cut)) if word not in ids]
        for word, encoding in zip(new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True):
            ids[word] = encoding.ids
            self._num_characters += len(word)
        return [np.fromiter(itertools.chain.from_iterable(map(ids.__getitem__, words)), np.int32) for words in cut]

    def encode_segments(
        self, data: bytes, segments: NDArray[np.int64], segment_ids: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As WordTable.encode."""
        places = segments.tolist()
        texts = [data[begin:end].decode() for begin, end in itertools.pairwise(places)]
        own = segment_ids.tolist()
        found = self.encode_batch(["" if each >= 0 else text for text, each in zip(texts, own, strict=True)])
        parts = [ids if each < 0 else np.array([each], np.int32) for ids, each in zip(found, own, strict=True)]
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def remember(tokenizer: Tokenizer, description: dict[str, Any]) -> WordMemory | None:
    """A memory for this tokenizer; None where words are not encoded one by one, or it is not known where they are cut.

    description: its tokenizer.json; tokens that were added since hold no printable ASCII at their ends, and no cut.
    """
    if description["model"]["type"] != "BPE" or description["model"].get("dropout") or description.get("normalizer"):
        return None
    if any(_reaches_over_a_cut(token) for token in description["added_tokens"]):
        return None
    steps = pre_tokenizer_steps(description.get("pre_tokenizer"))
    return WordMemory(tokenizer) if steps and all(map(_is_known, steps)) and any(map(_cuts, steps)) else None


def takes_single_digits(description: dict[str, Any]) -> bool:
    """Whether every digit is a word by itself."""
    steps = pre_tokenizer_steps(description.get("pre_tokenizer"))
    alone = any(step["type"] == "Digits" and step["individual_digits"] for step in steps)
    return alone or any(_cuts(step) and step["type"] == "Split" and step["pattern"]["Regex"] == _QWEN for step in steps)


def _reaches_over_a_cut(token: dict[str, Any]) -> bool:
    """Whether an added token holds such a place, ends in its space, takes the space behind it, or asks what stands before
    its own. Special ones take no space: they are plain text in a text."""
    content = token["content"]
    takes_space = token["rstrip"] and not token["special"] and "!" <= content[-1:] <= "~"
    looks_back = token["single_word"] and content.startswith(" ")
    return takes_space or looks_back or _CUT.search(f"{content}!") is not None


def _is_known(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer looks no further than to the next character that it cuts at."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _cuts(step)


def _cuts(step: dict[str, Any]) -> bool:
    """Whether a step cuts before such a space."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    return step["pattern"].get("Regex") in _PATTERNS
