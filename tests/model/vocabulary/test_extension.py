"""tokenizer.json with new pieces: ids that stay, special tokens that do not move, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.extension import Extension, extend_description, write_tokenizer
from tunesmith.model.vocabulary.learn import learn_pieces


@pytest.fixture
def extension(base, texts) -> Extension:
    words = base.count_words(texts)
    return learn_pieces(base, words, num_new_tokens=30, max_piece_characters=4, min_piece_count=2).extension


def test_transformers_loads_what_was_written_with_template_and_stop_ids(base, extension, base_dir, tmp_path):
    write_tokenizer(base, extension, tmp_path)
    before, after = AutoTokenizer.from_pretrained(base_dir), AutoTokenizer.from_pretrained(tmp_path)
    assert len(after) == len(before) + 30
    assert after.eos_token_id == before.eos_token_id
    chat = [{"role": "user", "content": "hi"}]
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    assert after.encode("我们今天") != before.encode("我们今天")


def test_special_tokens_outside_the_vocabulary_keep_their_ids(base_dir, texts, tmp_path):
    # As in Qwen and Llama 3: added tokens are numbered after the vocabulary and have no seat in it.
    raw = json.loads((base_dir / "tokenizer.json").read_bytes())
    size = max(raw["model"]["vocab"].values()) + 1
    like = raw["added_tokens"][0]
    raw["added_tokens"] += [{**like, "id": size + n, "content": f"<|extra_{n}|>"} for n in range(3)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    base = BaseTokenizer.load(tmp_path)
    assert base.first_free_id == size + 3
    words = base.count_words(texts)
    learned = learn_pieces(base, words, num_new_tokens=10, max_piece_characters=4, min_piece_count=2)
    tokenizer = Tokenizer.from_str(json.dumps(extend_description(base, learned.extension)))
    assert [tokenizer.token_to_id(f"<|extra_{n}|>") for n in range(3)] == [size, size + 1, size + 2]
    assert tokenizer.encode("a<|extra_1|>b").ids == base.tokenizer.encode("a<|extra_1|>b").ids


def test_merges_are_written_in_the_form_they_had(base, extension):
    for form in (" ".join, list):
        description = {**base.description, "model": {**base.description["model"]}}
        description["model"]["merges"] = [
            form(pair.split(" ") if isinstance(pair, str) else pair) for pair in base.description["model"]["merges"]
        ]
        written = extend_description(BaseTokenizer(base.path, description, base.tokenizer), extension)
        assert written["model"]["merges"][-1] == form(extension.merges[-1])


def test_a_piece_that_is_old_is_refused(base):
    taken = next(piece for piece in base.vocabulary if len(piece) == 2)
    with pytest.raises(ModelError, match="in the vocabulary already"):
        extend_description(base, Extension(base.first_free_id, (taken,), ((taken[0], taken[1]),), ((3, 4),)))


def test_a_merge_without_its_piece_is_refused():
    with pytest.raises(ModelError, match="do not make exactly"):
        Extension(10, ("ab",), (("a", "b"), ("b", "c")), ((1, 2),))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, "Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(base_dir, tmp_path, changes, found):
    raw = json.loads((base_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(ModelError, match=found):
        BaseTokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_file_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        BaseTokenizer.load(tmp_path)
