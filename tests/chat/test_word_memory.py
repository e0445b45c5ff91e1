"""A memory of words gives the ids of the whole text, and tokenizers it does not suit get none."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from toy_tokenizers import byte_tokenizer, sentencepiece_tokenizer

from tunesmith.chat import word_memory
from tunesmith.chat.word_memory import remember

LLAMA, QWEN = sorted(word_memory._PATTERNS, key=lambda pattern: "{1,3}" not in pattern)
FRAGMENTS = [
    " ", "  ", "\n", "\n\n ", "\t", "a", "Hello", " there", "user", "1", "23 4567", "'s", " 's", "don't", "...", "!?", " {", "}",
    "é", "e\u0301", " \u0301x", "好", "你 好", "🙂", "\u200d", "\xa0", "\u3000", "\x1c", "\x85", "_", "<think>", "</s>", "-", " -- ",
]  # fmt: skip


def remember_of(tokenizer: Tokenizer):
    return remember(tokenizer, json.loads(tokenizer.to_str()))


def tokenizer(*steps) -> Tokenizer:
    """The toy's vocabulary behind other steps."""
    backend = Tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str())
    backend.post_processor = None
    if steps:
        backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return backend


def split(pattern: str):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


KINDS = {
    "GPT-2": (),
    "digits first": (pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)),
    "Llama 3": (split(LLAMA), pre_tokenizers.ByteLevel(False, use_regex=False)),
    "Qwen": (split(QWEN), pre_tokenizers.ByteLevel(False, use_regex=False)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_text(kind):
    backend = tokenizer(*KINDS[kind])
    memory, source = remember_of(backend), random.Random(3)
    assert memory is not None
    texts = ["".join(source.choice(FRAGMENTS) for _ in range(source.randint(0, 40))) for _ in range(400)]
    expected = [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # new words, then known ones
        assert [ids.tolist() for ids in memory.encode_batch(texts)] == expected
    assert memory.encode_batch(["", "a"])[0].dtype == np.int32


def test_a_full_memory_begins_anew_and_changes_no_ids(monkeypatch):
    monkeypatch.setattr(word_memory, "_MOST_CHARACTERS", 10)
    backend = tokenizer()
    memory = remember_of(backend)
    assert memory is not None
    for text in ("the gear slips", "on my bike, again", "the gear slips"):
        assert memory.encode_batch([text])[0].tolist() == backend.encode(text, add_special_tokens=False).ids
    assert set(memory._ids) == {"the", " gear", " slips"}


def test_tokenizers_it_does_not_suit_get_none():
    assert remember_of(sentencepiece_tokenizer(False).backend_tokenizer) is None
    assert remember_of(tokenizer(pre_tokenizers.ByteLevel(False, use_regex=False))) is None  # words are not cut at all
    assert remember_of(tokenizer(split(r"\p{L}+ \p{L}+"), pre_tokenizers.ByteLevel(False))) is None  # unknown pattern
    assert remember_of(tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    normalising = tokenizer()
    normalising.normalizer = normalizers.NFC()
    assert remember_of(normalising) is None
    for token in (
        AddedToken("two words"),
        AddedToken("<eats>", rstrip=True),
        AddedToken("ends in it "),
        AddedToken(" alone", single_word=True),
    ):
        changed = tokenizer()
        changed.add_tokens([token])
        assert remember_of(changed) is None
    other = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    assert remember_of(other) is None
