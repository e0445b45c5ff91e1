"""New rows are means of old ones, tied or not; what is written is looked at as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from small_models import build_model
from tunesmith.errors import ModelError
from tunesmith.model.load import load_model
from tunesmith.model.vocabulary.base import BaseTokenizer
from tunesmith.model.vocabulary.check import check_folder, joins
from tunesmith.model.vocabulary.extension import Extension, write_tokenizer
from tunesmith.model.vocabulary.learn import learn_pieces
from tunesmith.model.vocabulary.report import TokenCounts, bits_per_byte, count_tokens
from tunesmith.model.vocabulary.rows import grow_rows, matrices


def learned(folder: Path, texts: list[str], number: int = 25) -> tuple[BaseTokenizer, Extension]:
    base = BaseTokenizer.load(folder)
    words = base.count_words(texts)
    found = learn_pieces(base, words, num_new_tokens=number, max_piece_characters=4, min_piece_count=2)
    return base, found.extension


@pytest.fixture
def written(base_dir: Path, texts: list[str], tmp_path: Path) -> tuple[Path, BaseTokenizer, Extension]:
    base, extension = learned(base_dir, texts)
    model = load_model(base_dir, device="cpu", dtype=torch.bfloat16)
    grow_rows(model, extension)
    model.save_pretrained(tmp_path / "grown")
    write_tokenizer(base, extension, tmp_path / "grown")
    return tmp_path / "grown", base, extension


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 7, 100])
def test_a_new_row_is_the_mean_of_its_old_pieces(tmp_path, texts, tied, spare):
    size = len(BaseTokenizer.load(build_model(tmp_path / "probe")).vocabulary)
    folder = build_model(tmp_path / "m", tie_word_embeddings=tied, vocab_size=size + spare)
    _, extension = learned(folder, texts)
    model = load_model(folder, device="cpu", dtype=torch.float32)
    before = [matrix.detach().clone() for matrix in matrices(model)]
    grow_rows(model, extension)
    assert len(before) == len(matrices(model)) == (1 if tied else 2)
    for old, new in zip(before, matrices(model), strict=True):
        assert new.shape[0] == max(extension.size, size + spare)
        assert torch.equal(new[: extension.first_id], old[: extension.first_id])
        for place in (0, 11, 24):
            mean = old[list(extension.old_pieces[place])].mean(0)
            torch.testing.assert_close(new[extension.first_id + place], mean)
    assert model.config.vocab_size == max(extension.size, size + spare)


def test_a_model_that_grew_says_of_old_text_what_it_said(base_dir, texts):
    _, extension = learned(base_dir, texts)
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        grow_rows(model, extension)
        after = model(input_ids=ids).logits
    assert torch.equal(after[..., : extension.first_id], before[..., : extension.first_id])


def test_a_whole_folder_passes_the_check(written, texts):
    folder, base, extension = written
    check_folder(folder, base, extension, [*texts[:20], "plain English, 2024 <|im_end|> too", ""])


def edit(path: Path, change) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(vocab_size=c["vocab_size"] - 1), "config.json says vocab_size"),
        ("tokenizer.json", lambda t: t["model"]["merges"].pop(), "the merges are not"),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=9999), "tokens, expected"),
        ("tokenizer.json", lambda t: t["model"]["merges"].reverse(), "the merges are not"),
        ("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}), "does not come back"),
    ],
)
def test_a_folder_whose_parts_disagree_is_refused(written, texts, file, change, message):
    folder, base, extension = written
    edit(folder / file, change)
    with pytest.raises(ModelError, match=message):
        check_folder(folder, base, extension, ["Where IS my order", *texts[:20]])


def test_new_tokens_must_be_the_old_ones_joined(base):
    first = base.first_free_id
    a, b, c = (base.vocabulary[letter] for letter in "xyz")
    extension = Extension(first, ("xy",), (("x", "y"),), ((a, b),))
    assert joins(base, extension, [a, b, c], [first, c])
    assert not joins(base, extension, [a, b, c], [c, first])
    assert not joins(base, extension, [a, b, c], [first])
    assert not joins(base, extension, [a], [first])
    assert not joins(base, extension, [b, a], [first])


def test_a_matrix_with_too_few_rows_is_refused(written, base_dir, texts):
    folder, base, extension = written
    (folder / "model.safetensors").write_bytes((base_dir / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="rows, config"):
        check_folder(folder, base, extension, texts[:5])


def test_a_tokenizer_larger_than_its_model_is_refused(base_dir, texts):
    _, extension = learned(base_dir, texts)
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    model.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="ids up to 399"):
        grow_rows(model, extension)


def test_rates_are_per_character_and_per_byte(base, texts):
    counts = count_tokens(base.tokenizer, base.tokenizer, ["自行车", "ab"])
    assert (counts.num_texts, counts.num_characters, counts.num_bytes) == (2, 5, 11)
    rates = TokenCounts(num_texts=1, num_characters=10, num_bytes=30, tokens_before=20, tokens_after=8).rates()
    assert rates == {
        "tokens_per_character_before": 2.0,
        "tokens_per_character_after": 0.8,
        "tokens_per_byte_before": 0.6667,
        "tokens_per_byte_after": 0.2667,
        "tokens_saved": 0.6,
    }
    assert set(
        TokenCounts(num_texts=0, num_characters=0, num_bytes=0, tokens_before=0, tokens_after=0).rates().values()
    ) == {None}


def test_bits_per_byte_are_of_all_texts_together_and_their_error_is_that_of_the_texts():
    assert bits_per_byte([10.0, 20.0], [10, 10]) == (
        1.5,
        pytest.approx(0.5),
    )  # 1 and 2 bits a byte: their standard error
    value, error = bits_per_byte([30.0, 5.0, 5.0], [20, 5, 5])
    assert value == pytest.approx(40 / 30)
    assert error == pytest.approx((((10 / 3) ** 2 + 2 * (5 / 3) ** 2) * 3 / 2) ** 0.5 / 30)
    assert bits_per_byte([30.0, 15.0], [20, 10])[1] == pytest.approx(0.0)
    assert bits_per_byte([30.0], [20]) == (1.5, None)
