"""The compiled tokenizer finds the words of the regular expressions, in every script, and numbers them exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.text.rouge import Tokenizer, alphabet_of, rouge_score_tokens, unicode_tokens

pytest.importorskip("numba")

from tunesmith.data.kernels.words import Vocabulary, pack, split_words

SCRIPTS = "aZé9_'-. \n\u0301\u0e31\u0e20狗カ한हिन्दीΣİKﬁ㍿\ud800\u200d👍\u00a0"
TEXTS = st.lists(st.text(alphabet=st.one_of(st.sampled_from(SCRIPTS), st.characters()), max_size=20), max_size=6)
ENGLISH = st.lists(st.text(alphabet="aBc 0_-", max_size=20), max_size=6)


@pytest.mark.parametrize("tokenize", [unicode_tokens, rouge_score_tokens])
@settings(max_examples=400, deadline=None)
@given(texts=st.one_of(TEXTS, ENGLISH))
def test_each_word_gets_one_number_and_no_two_words_share_one(tokenize: Tokenizer, texts: list[str]):
    alphabet = alphabet_of(tokenize)
    assert alphabet is not None
    numbers, offsets = Vocabulary().number(texts, alphabet)
    expected: dict[str, int] = {}
    rows = [[expected.setdefault(word, len(expected)) for word in tokenize(text)] for text in texts]
    assert [numbers[offsets[row] : offsets[row + 1]].tolist() for row in range(len(texts))] == rows


def test_words_of_one_hash_are_told_apart_by_their_letters():
    vocabulary, alphabet = Vocabulary(), alphabet_of(unicode_tokens)
    assert alphabet is not None
    vocabulary.number(["alpha beta"], alphabet)
    vocabulary._hashes[0] = vocabulary._hashes[1]  # as if both hashed alike, "alpha" in the slot of "beta"
    vocabulary._table[vocabulary._table >= 0] = 0
    numbers, _ = vocabulary.number(["beta"], alphabet)
    assert numbers.tolist() == [2]


def test_a_vocabulary_outgrows_its_first_room_and_keeps_its_numbers():
    vocabulary, alphabet = Vocabulary(), alphabet_of(unicode_tokens)
    assert alphabet is not None
    words = [f"word{number}" for number in range(9000)]
    first, _ = vocabulary.number(words, alphabet)
    again, _ = vocabulary.number(words[::-1], alphabet)
    assert first.tolist() == list(range(9000))
    assert again.tolist() == list(range(9000))[::-1]
    assert vocabulary.counts[:9000].tolist() == [2] * 9000


def test_ascii_and_other_texts_give_the_same_hashes():
    alphabet = alphabet_of(unicode_tokens)
    assert alphabet is not None
    codes, offsets = pack(["Hello World"], alphabet)
    wide_codes, wide_offsets = pack(["ＨＥＬＬＯ world"], alphabet)
    assert (codes.dtype, wide_codes.dtype) == ("uint8", "uint32")
    narrow = split_words(codes, offsets, alphabet.classes())
    wide = split_words(wide_codes, wide_offsets, alphabet.classes())
    assert narrow[0].tolist() == wide[0].tolist()
    assert narrow[1].tolist() == [0, 6]
    assert narrow[2].tolist() == [5, 11]
