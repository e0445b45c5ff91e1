"""Learning pieces: the same merges as counting anew after each one, whole characters, old text cut as before."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tunesmith.chat.pieces import from_byte_level
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.check import joins
from tunesmith.model.vocabulary.extension import extend_description
from tunesmith.model.vocabulary.learn import is_whole, learn_pieces
from tunesmith.model.vocabulary.pairs import Pairs, ids_of


def plain_learning(base: BaseTokenizer, words: Counter[str], limit: int, longest: int, least: int) -> list[str]:
    """Thirty lines that count all pairs again before every join."""
    text_of = {index: piece for piece, index in base.vocabulary.items()}
    cut = {word: [text_of[index] for index in base.cut(word)] for word in words}
    rank = {piece: index for piece, index in base.vocabulary.items()}
    pieces: list[str] = []
    while len(pieces) < limit:
        counts: Counter[tuple[str, str]] = Counter()
        for word, parts in cut.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        allowed = {
            pair: count
            for pair, count in counts.items()
            if count >= least and pair[0] + pair[1] not in rank and is_whole(from_byte_level("".join(pair)), longest)
        }
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-allowed[pair], rank[pair[0]], rank[pair[1]]))
        piece = best[0] + best[1]
        rank[piece] = max(rank.values()) + 1
        pieces.append(piece)
        for word, parts in cut.items():
            joined: list[str] = []
            place = 0
            while place < len(parts):
                whole = tuple(parts[place : place + 2]) == best
                joined.append(piece if whole else parts[place])
                place += 2 if whole else 1
            cut[word] = joined
    return pieces


def learn(base: BaseTokenizer, words: Counter[str], limit: int = 50, longest: int = 4, least: int = 2):
    return learn_pieces(base, words, num_new_tokens=limit, max_piece_characters=longest, min_piece_count=least)


def extended(base: BaseTokenizer, learned) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(extend_description(base, learned.extension)))


def test_the_pieces_are_those_of_counting_again_before_every_join(base, texts):
    words = base.count_words(texts[:60])
    learned = learn(base, words, limit=60)
    assert list(learned.extension.pieces) == plain_learning(base, words, 60, 4, 2)
    assert len(learned.counts) == 60


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("aab中国文 的", min_size=1, max_size=14), min_size=1, max_size=12))
def test_runs_of_one_token_and_any_mixture_are_learnt_as_plainly_counted(base, texts):
    words = base.count_words(texts)
    assert list(learn(base, words, 12, 3, 1).extension.pieces) == plain_learning(base, words, 12, 3, 1)


def test_the_order_of_the_texts_changes_nothing(base, texts):
    there, back = base.count_words(texts), base.count_words(reversed(texts))
    assert learn(base, there).extension == learn(base, back).extension


def test_old_text_keeps_its_ids_and_new_tokens_are_old_ones_joined(base, texts):
    learned = learn(base, base.count_words(texts), limit=80)
    tokenizer = extended(base, learned)
    english = "where is my order? it's 2024 already <|im_end|> naïve"
    assert tokenizer.encode(english).ids == base.tokenizer.encode(english).ids
    fewer = 0
    for text in [*texts[:40], "没见过的字：龘 🚲 mixed with 自行车!"]:
        old, new = base.tokenizer.encode(text).ids, tokenizer.encode(text).ids
        assert tokenizer.decode(new, skip_special_tokens=False) == text
        assert joins(base, learned.extension, old, new)
        opened = [
            part
            for index in new
            for part in (
                learned.extension.old_pieces[index - base.first_free_id] if index >= base.first_free_id else (index,)
            )
        ]
        assert opened == old
        fewer += len(old) - len(new)
    assert fewer > 0


def test_the_count_of_tokens_is_what_the_new_tokenizer_gives(base, texts):
    words = base.count_words(texts)
    learned = learn(base, words, limit=70)
    tokenizer = extended(base, learned)
    several = [word for word in words if len(base.cut(word)) > 1]  # words of one token are not counted
    assert learned.tokens_before == sum(words[word] * len(base.cut(word)) for word in several)
    assert learned.tokens_after == sum(words[word] * len(tokenizer.model.tokenize(word)) for word in several)


def test_no_piece_is_longer_than_asked_or_ends_inside_a_character(base, texts):
    learned = learn(base, base.count_words(texts), limit=200, longest=2)
    whole = [piece for piece in map(from_byte_level, learned.extension.pieces) if is_whole(piece, 2)]
    assert len(whole) == len(learned.extension.pieces) > 30
    longest = max(len(piece.decode()) for piece in whole if not piece[-1:].isspace() and len(piece) >= 6)
    assert longest == 2


@pytest.mark.parametrize(
    ("piece", "whole"),
    [
        ("中国".encode(), True),
        ("中国人们".encode(), False),  # too long for 3
        ("中".encode()[:2], True),  # the beginning of a character
        ("中".encode()[1:], True),  # its end
        ("中".encode()[1:] + b"a", False),
        (b"a" + "中".encode()[:1], False),
        ("中".encode() + "国".encode()[:2], False),
        (b"abc", True),
        (b"\x80\x80\x80\x80", False),
    ],
)
def test_a_piece_is_whole_characters_or_a_part_of_one(piece, whole):
    assert is_whole(piece, 3) is whole


def test_nothing_is_learnt_where_nothing_repeats(base):
    assert learn(base, base.count_words(["龘靐"]), least=2).extension.pieces == ()


def test_joining_a_pair_counts_its_new_neighbours():
    tokens = np.array([1, 2, 1, 2, 3, 1, 1, 1], np.int32)  # words "1 2 1 2 3" twice and "1 1 1" once
    pairs = Pairs(tokens, np.array([5, 3]), np.array([2, 1]), min_count=1)
    named = {ids_of(key): count for key, count in pairs.counts.items()}
    assert named == {(1, 2): 4, (2, 1): 2, (2, 3): 2, (1, 1): 2}
    key = next(key for key in pairs.counts if ids_of(key) == (1, 2))
    assert [ids_of(key) for key in pairs.join(key, 9)] == [(9, 3), (9, 9)]
    named = {ids_of(key): count for key, count in pairs.counts.items() if count}
    assert named == {(9, 9): 2, (9, 3): 2, (1, 1): 2}
    assert pairs.num_tokens == 5 * 2 + 3 - 4
    key = next(key for key in pairs.counts if ids_of(key) == (1, 1))
    assert [ids_of(key) for key in pairs.join(key, 10)] == [(10, 1)]  # three in a row: the first two
