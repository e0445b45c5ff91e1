"""Loading a tokenizer, and encoding with control tokens where they are meant and boundaries where they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_tokenizers import SPECIAL, byte_tokenizer, sentencepiece_tokenizer
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.tokenizer import TextEncoder, Written, load_tokenizer
from tunesmith.errors import DataError, ModelError


def test_a_saved_tokenizer_comes_back(tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("Hello 好") == byte_tokenizer().encode("Hello 好")
    assert loaded.eos_token == "</s>"


def test_a_missing_folder_and_a_folder_without_a_tokenizer_are_model_errors(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no model folder here"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_damaged_tokenizer_file_is_a_model_error(tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_code_in_a_model_folder_is_not_run(tmp_path: Path):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoTokenizer": [null, "evil.Evil"]}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": [null, "evil.Evil"]}}')
    try:
        load_tokenizer(tmp_path)
    except ModelError as error:
        assert "code was run" not in str(error)


def test_offsets_say_which_characters_a_token_stands_for():
    encoder = TextEncoder(byte_tokenizer(), SPECIAL)
    text = "<|im_start|>user\nHello 🙂<|im_end|>"
    encoded = encoder.encode(Written(text))
    places = list(zip(encoded.starts.tolist(), encoded.ends.tolist(), strict=True))
    assert sorted({place for start, end in places for place in range(start, end)}) == list(range(len(text)))
    assert encoded.starts.tolist() == sorted(encoded.starts.tolist())
    assert encoded.ends.tolist() == sorted(encoded.ends.tolist())
    assert (encoded.starts[0], encoded.ends[0]) == (0, 12)
    assert text[encoded.starts[-1] : encoded.ends[-1]] == "<|im_end|>"


def test_a_cut_keeps_tokens_from_reaching_across_it_and_leaves_no_trace():
    encoder = TextEncoder(byte_tokenizer(), SPECIAL)
    text = "assistant\n\n\nHello"
    cut = encoder.encode(Written(text, cuts=[10]))
    assert 10 in cut.starts.tolist()
    assert byte_tokenizer().decode(cut.input_ids) == text
    assert (
        cut.input_ids.tolist()[: cut.starts.tolist().index(10)] == encoder.encode(Written(text[:10])).input_ids.tolist()
    )


def test_the_older_kind_of_pieces_is_cut_only_where_a_token_would_reach_across():
    encoder = TextEncoder(sentencepiece_tokenizer(True), SPECIAL)
    assert not encoder.cuts_are_clean
    assert TextEncoder(sentencepiece_tokenizer(False), SPECIAL).cuts_are_clean
    ordinary = Written("ASSISTANT: Hello", cuts=[10])
    assert encoder.encode(ordinary).input_ids.tolist() == encoder.encode(Written(ordinary.text)).input_ids.tolist()
    within = Written("assistant", cuts=[4])
    assert 4 not in encoder.encode(Written("assistant")).starts.tolist()
    assert 4 in encoder.encode(within).starts.tolist()


def test_a_vocabulary_that_merges_its_way_to_a_control_token_is_stopped():
    vocab = {"<": 0, "/": 1, "s": 2, ">": 3, "</": 4, "s>": 5, "</s>": 6, "a": 7}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.Split("a", "isolated")
    backend.add_special_tokens(["</s>"])
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), ["</s>"])
    assert encoder.encode(Written("a</s>a</s>", plain=[(1, 5)])).input_ids.tolist() == [7, 0, 1, 5, 7, 6]


def test_a_vocabulary_with_holes_keeps_its_ids():
    backend = Tokenizer(models.BPE({"a": 0, "b": 9, "ab": 12}, [("a", "b")]))
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    encoder = TextEncoder(tokenizer, ["</s>"])
    expected = tokenizer.encode("abb</s>a", add_special_tokens=False)
    assert encoder.encode(Written("abb</s>a", cuts=[3])).input_ids.tolist() == expected


def test_text_that_is_no_unicode_or_uses_the_reserved_mark_is_a_data_error():
    with pytest.raises(DataError, match="half of a surrogate pair"):
        Written("x\ud83d")
    with pytest.raises(DataError, match="reserved"):
        Written("\U0010fffdtunesmith-control-0\U0010fffd")
