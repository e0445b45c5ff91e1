"""Words in arrays have the ids of the whole text, however they are cut."""

from __future__ import annotations

import itertools
import json
import random
import re

import numpy as np
import pytest
from test_word_memory import FRAGMENTS, KINDS, tokenizer
from tokenizers import AddedToken

from tunesmith.chat import word_table
from tunesmith.chat.word_memory import remember, takes_single_digits
from tunesmith.chat.word_table import WordTable

pytest.importorskip("numba")
SEPARATOR = "\U0010fffdcut\U0010fffd"
MORE = [
    "1234567890",
    "ABC'Re",
    "'LL",
    "x's",
    "\x0b",
    "\r",
    "\r\n",
    "\u2028",
    "ﬁ",
    "²",
    "٣",
    "\x00",
    "\ufeff",
    "(5)",
    "a1b2",
    "K",
]


def table_of(backend) -> WordTable:
    description = json.loads(backend.to_str())
    assert remember(backend, description) is not None
    backend.add_tokens([AddedToken(SEPARATOR, normalized=False)])
    backend.encode_special_tokens = True
    others = [token["content"] for token in description["added_tokens"] if not token["special"]]
    added = re.compile("|".join(map(re.escape, others)).encode() or b"(?!)")
    separator = SEPARATOR, backend.token_to_id(SEPARATOR)
    return WordTable(backend, separator, added, single_digits=takes_single_digits(description))


def encoded(table: WordTable, texts: list[str]) -> list[list[int]]:
    sizes = [len(text.encode()) for text in texts]
    segments = np.cumsum([0, *sizes])
    ids, offsets = table.encode("".join(texts).encode(), segments, np.full(len(texts), -1, np.int32))
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", [False, True])
def test_ids_are_those_of_the_whole_text(kind: str, added: bool):
    backend, source = tokenizer(*KINDS[kind]), random.Random(5)
    table = table_of(backend)
    fragments = [each for each in [*FRAGMENTS, *MORE] if added or "<" not in each]
    texts = ["".join(source.choice(fragments) for _ in range(source.randint(0, 40))) for _ in range(600)]
    expected = [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # new words, then known ones
        assert encoded(table, texts) == expected


def test_every_pair_of_ascii_characters_is_cut_as_the_tokenizer_cuts():
    characters = [chr(code) for code in range(128)]
    texts = [f"{a}{b}{c}" for a in characters for b in characters for c in "a1' \n"]
    for kind in KINDS:
        backend = tokenizer(*KINDS[kind])
        table = table_of(backend)
        assert encoded(table, texts) == [
            each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)
        ]


def test_a_segment_with_an_id_of_its_own_is_not_read():
    table = table_of(tokenizer())
    ids, offsets = table.encode(b"Hello<x>there", np.array([0, 5, 8, 13]), np.array([-1, 77, -1], np.int32))
    assert ids[offsets[1] : offsets[2]].tolist() == [77]
    assert [ids[: offsets[1]].tolist(), ids[offsets[2] :].tolist()] == encoded(table, ["Hello", "there"])


def test_a_table_grows_and_begins_anew_without_changing_ids(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_table, "_FIRST_WORDS", 4)
    monkeypatch.setattr(word_table, "_MOST_WORDS", 300)
    backend, source = tokenizer(), random.Random(1)
    table = table_of(backend)
    for _ in range(8):
        texts = ["".join(source.choice("abcdefgh XYZ12.") for _ in range(50)) for _ in range(20)]
        assert encoded(table, texts) == [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
    assert int(table._sizes[0]) < 1000
