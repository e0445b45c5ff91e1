"""SentencePiece pieces in a byte-level BPE: every piece accounted for, each one token, and the published rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sentencepiece_file import PIECES, model_bytes
from tunesmith.errors import DataError
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.extension import extend_description
from tunesmith.model.vocabulary.report import count_tokens
from tunesmith.model.vocabulary.sentencepiece import Piece, characters, merge_pieces, read_sentencepiece


def test_the_file_is_read_piece_by_piece(tmp_path: Path):
    (tmp_path / "x.model").write_bytes(model_bytes(PIECES))
    pieces = read_sentencepiece(tmp_path / "x.model")
    assert [piece.text for piece in pieces] == [text.replace("▁", " ") for text, _, _ in PIECES]
    assert [piece.is_text for piece in pieces] == [False, False, *[True] * 8]
    assert pieces[5] == Piece("自行车", -4.0, True)


def test_every_piece_is_added_known_split_or_no_text(base, tmp_path: Path):
    (tmp_path / "x.model").write_bytes(model_bytes(PIECES))
    merged = merge_pieces(base, read_sentencepiece(tmp_path / "x.model"), None)
    # known: a; split: 20 (digits stand alone) and the comma with a character (punctuation is cut off)
    counts = (merged.num_added, merged.num_known, merged.num_split, merged.num_not_text)
    assert (sum(counts), merged.num_not_text, merged.num_unreached) == (len(PIECES), 2, 0)
    assert merged.num_split == 2
    assert len(merged.extension.pieces) == merged.num_added + merged.num_halves
    tokenizer = Tokenizer.from_str(json.dumps(extend_description(base, merged.extension)))
    # the last one is a half, of which the longer piece is made
    assert [len(tokenizer.encode(text).ids) for text in ("自行车", "订单", " 我", "自行")] == [1, 1, 1, 1]


def test_a_piece_that_gains_more_over_its_parts_is_joined_first(base):
    pieces = [
        Piece(text, score, True) for text, score in (("甲", -5), ("乙", -5), ("丙", -5), ("甲乙", -9), ("乙丙", -6))
    ]
    tokenizer = Tokenizer.from_str(json.dumps(extend_description(base, merge_pieces(base, pieces, None).extension)))
    ends = [end for _, end in tokenizer.encode("甲乙丙").offsets]
    assert ends == [1, 3]


def test_the_likeliest_pieces_are_taken_where_a_number_is_given(base, tmp_path: Path):
    (tmp_path / "x.model").write_bytes(model_bytes(PIECES))
    merged = merge_pieces(base, read_sentencepiece(tmp_path / "x.model"), 2)
    counts = (merged.num_added, merged.num_known, merged.num_split, merged.num_not_text, merged.num_left_out)
    assert (merged.num_added, sum(counts)) == (2, len(PIECES))
    tokenizer = Tokenizer.from_str(json.dumps(extend_description(base, merged.extension)))
    assert [len(tokenizer.encode(text).ids) for text in ("自", "行", " 我")][:2] == [1, 1]
    assert len(tokenizer.encode("自行车").ids) > 1


def test_a_word_is_cut_into_characters(base):
    [word] = base.words("车é🚲a")[:1]
    assert [len(unit) for unit in characters(word)][:2] == [3, 2]


@pytest.mark.parametrize("damage", [b"not a model at all", b"", b"\x0a\xff\xff\x03abc"])
def test_a_file_of_another_kind_is_refused_with_its_name(tmp_path: Path, damage: bytes):
    (tmp_path / "x.model").write_bytes(damage)
    with pytest.raises(DataError, match="SentencePiece"):
        read_sentencepiece(tmp_path / "x.model")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_sentencepiece(tmp_path / "x.model")


@pytest.mark.real
def test_twenty_thousand_chinese_pieces_take_61_tokens_per_hundred_characters(smollm2_dir: Path, shared_data: Path):
    # The .model file alone takes 46,453 pieces for these 76,152 characters: .610 a character.
    base = BaseTokenizer.load(smollm2_dir)
    pieces = read_sentencepiece(shared_data / "zh" / "chinese_sp.model")
    assert len(pieces) == 20_000
    merged = merge_pieces(base, pieces, None)
    assert merged.num_added + merged.num_known + merged.num_split + merged.num_not_text == 20_000
    rows = [json.loads(line) for line in (shared_data / "belle" / "eval_set.json").read_text("utf-8").splitlines()]
    questions = [row["question"] for row in rows]
    after = Tokenizer.from_str(json.dumps(extend_description(base, merged.extension)))
    counts = count_tokens(base.tokenizer, after, questions)
    assert (counts.num_texts, counts.num_characters, counts.tokens_before) == (1000, 76_152, 116_649)
    rates = counts.rates()
    assert rates["tokens_per_character_after"] == pytest.approx(46_453 / 76_152, abs=0.003)
    assert rates["tokens_saved"] is not None and rates["tokens_saved"] >= 0.60
