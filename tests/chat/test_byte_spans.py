"""Places from byte lengths: equal to the tokenizer's own offsets, and no answer where bytes do not add up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from toy_tokenizers import SPECIAL, byte_tokenizer, sentencepiece_tokenizer

from tunesmith.chat.byte_spans import byte_lengths, spans
from tunesmith.chat.tokenizer import TextEncoder, Written


def byte_lengths_of(tokenizer: Tokenizer):
    return byte_lengths(tokenizer, json.loads(tokenizer.to_str()))


TEXTS = [
    "Hello there,  how are you?\n\n\tFine.",
    "你好，世界 émigré naïve 🙂🚲 1234567890",
    "",
    " ",
    "🙂",
    '{"intent": "refund"}\r\n',
    "e\u0301 and \u00e9, \u200d and \ufeff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_places_from_bytes_are_the_offsets_of_the_tokenizer(text):
    backend = byte_tokenizer().backend_tokenizer
    backend = Tokenizer.from_str(backend.to_str())
    backend.post_processor = None
    lengths = byte_lengths_of(backend)
    assert lengths is not None
    encoding = backend.encode(text, add_special_tokens=False)
    found = spans(text, np.array(encoding.ids, np.int32), lengths)
    assert found is not None
    assert list(zip(*(each.tolist() for each in found), strict=True)) == encoding.offsets


def test_an_encoder_gives_the_same_with_lengths_and_with_offsets():
    fast, slow = TextEncoder(byte_tokenizer(), SPECIAL), TextEncoder(byte_tokenizer(), SPECIAL)
    assert fast._byte_lengths is not None
    slow._byte_lengths = None
    text = "<|im_start|>user\n你好 <|im_end|> é<|im_end|>\n<|im_start|>assistant\n 🙂!<|im_end|>"
    written = Written(text, plain=[(17, 32)], cuts=[len(text) - 14])
    left, right = fast.encode(written), slow.encode(written)
    assert left.input_ids.tolist() == right.input_ids.tolist()
    assert left.starts.tolist() == right.starts.tolist()
    assert left.ends.tolist() == right.ends.tolist()


@pytest.mark.parametrize("text", ["abc def", "é abc"])
def test_tokens_that_are_not_the_whole_text_have_no_answer(text):
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))  # "d", "e", "f" and the space are lost
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lengths = byte_lengths_of(backend)
    assert lengths is not None and lengths.tolist() == [1, 1, 1]
    assert spans(text, np.array(backend.encode(text).ids, np.int32), lengths) is None


def test_a_token_that_swallows_spaces_falls_back_to_offsets():
    tokenizer = byte_tokenizer()
    encoder, plain = TextEncoder(tokenizer, SPECIAL), TextEncoder(tokenizer, SPECIAL)
    for each in (encoder, plain):
        each._copy.add_tokens([AddedToken("<eats>", rstrip=True, normalized=False)])
    assert encoder._byte_lengths is not None
    encoder._byte_lengths, plain._byte_lengths = byte_lengths_of(encoder._copy), None
    encoder._memory = None
    left, right = (each._tokens(["one <eats>   two", "one two"]) for each in (encoder, plain))
    assert [each.ends.tolist() for each in left] == [each.ends.tolist() for each in right]
    assert [each.input_ids.tolist() for each in left] == [each.input_ids.tolist() for each in right]


def test_tokenizers_that_may_change_the_text_are_left_to_their_offsets():
    def of(**parts):
        backend = Tokenizer(models.BPE({"a": 0}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        for name, part in parts.items():
            setattr(backend, name, part)
        return byte_lengths_of(backend)

    assert of() is not None
    assert (
        of(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]))
        is not None
    )
    assert of(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)) is None
    assert of(pre_tokenizer=pre_tokenizers.Digits(True)) is None
    assert of(normalizer=normalizers.NFC()) is None
    removing = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(False)])
    assert of(pre_tokenizer=removing) is None
    assert byte_lengths_of(sentencepiece_tokenizer(True).backend_tokenizer) is None
