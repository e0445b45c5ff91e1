"""Longer context and new tokens: what is written is what transformers computes with, and old weights stay as they were."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GPT2Config

from small_models import build_model, build_tokenizer
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.model.context import extend_config, extend_model, scaled_view
from tunesmith.model.context_report import bucket_edges, head_is_all, measure_context, token_losses
from tunesmith.model.folder import context_length_of, inspect_folder
from tunesmith.model.load import load_model
from tunesmith.model.tensor_files import Tensors

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "vocab_size": 100,
}  # fmt: skip
EOT = "<|end_of_turn|>"


def extend(base_dir: Path, out_dir: Path, scaling: str = "none", context: int | None = None, tokens=()):
    return extend_model(
        base_dir, out_dir, rope_scaling=scaling, context_length=context, add_tokens=tokens, on_done=lambda *_: None
    )


def frequencies(folder: Path, length: int) -> torch.Tensor:
    """What the loaded model multiplies positions by, when it reads `length` tokens."""
    rotary = load_model(folder, device="cpu", dtype=torch.float32).model.rotary_emb
    rotary(torch.zeros(1, 1, 16), torch.arange(length)[None])
    return rotary.inv_freq


PLAIN = 10000.0 ** -(torch.arange(0, 16, 2) / 16)  # (head_dim / 2,)


def test_linear_divides_every_frequency(base_dir: Path, tmp_path: Path):
    done = extend(base_dir, tmp_path / "m", "linear", 2048)
    assert (done.context_length, done.old_context_length) == (2048, 512)
    torch.testing.assert_close(frequencies(tmp_path / "m", 100), PLAIN / 4)
    assert inspect_folder(tmp_path / "m").context_length == 2048


def test_dynamic_leaves_short_text_alone_and_raises_the_base_beyond_the_old_length(base_dir: Path, tmp_path: Path):
    extend(base_dir, tmp_path / "m", "dynamic", 1024)
    torch.testing.assert_close(frequencies(tmp_path / "m", 512), PLAIN)
    base = 10000.0 * (2 * 1024 / 512 - 1) ** (16 / 14)
    torch.testing.assert_close(frequencies(tmp_path / "m", 1024), base ** -(torch.arange(0, 16, 2) / 16))
    assert inspect_folder(tmp_path / "m").context_length == 1024


def test_yarn_keeps_high_frequencies_divides_low_ones_and_sharpens_attention(base_dir: Path, tmp_path: Path):
    extend(base_dir, tmp_path / "m", "yarn", 1024)
    found = frequencies(tmp_path / "m", 1024)

    def place(turns: float) -> float:  # the pair of columns that turns so often within the old length
        return 16 * math.log(512 / (turns * 2 * math.pi)) / (2 * math.log(10000))

    low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), 15)
    kept = 1 - ((torch.arange(8) - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(found, PLAIN / 2 * (1 - kept) + PLAIN * kept)
    assert found[0] == PLAIN[0]
    torch.testing.assert_close(found[-1], PLAIN[-1] / 2)
    rotary = load_model(tmp_path / "m", device="cpu", dtype=torch.float32).model.rotary_emb
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(2) + 1)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["rope_parameters"] == {
        "rope_theta": 10000.0,
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 512,
    }


def test_extrapolation_raises_the_limit_and_nothing_else(base_dir: Path, tmp_path: Path):
    extend(base_dir, tmp_path / "m", "extrapolate", 4096)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base_dir, tmp_path / "m"))
    assert after == {**before, "max_position_embeddings": 4096}
    torch.testing.assert_close(frequencies(tmp_path / "m", 4096), PLAIN)


def test_weights_are_linked_and_the_tokenizer_knows_the_new_limit(base_dir: Path, tmp_path: Path):
    extend(base_dir, tmp_path / "m", "linear", 1024)
    assert (tmp_path / "m" / "model.safetensors").samefile(base_dir / "model.safetensors")
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == (base_dir / "tokenizer.json").read_bytes()
    assert (tmp_path / "m" / "chat_template.jinja").is_file()
    settings = json.loads((base_dir / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 512
    limited = tmp_path / "limited"
    limited.mkdir()
    for file in base_dir.iterdir():
        (limited / file.name).write_bytes(file.read_bytes())
    (limited / "tokenizer_config.json").write_text(json.dumps(settings))
    extend(limited, tmp_path / "n", "linear", 1024)
    assert load_tokenizer(tmp_path / "n").model_max_length == 1024


def test_names_of_older_configurations_are_replaced_not_doubled():
    new = extend_config(LLAMA, rope_scaling="linear", context_length=1024)
    assert new["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    assert "rope_theta" not in new and "rope_scaling" not in new
    old = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert extend_config(old, rope_scaling="extrapolate", context_length=1024)["rope_scaling"] == old["rope_scaling"]


@pytest.mark.parametrize(
    ("scaling", "context", "config", "message"),
    [
        ("none", 1024, LLAMA, "reads 512 tokens, not 1,024"),
        ("yarn", None, LLAMA, "more than the model's 512 tokens, and none is named"),
        ("yarn", 512, LLAMA, "512 is not more"),
        ("linear", 1024, {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, r"scaled already \(linear\)"),
        ("linear", 2048, GPT2Config(n_positions=1024).to_dict(), "a table of positions"),
        ("yarn", 4096, {"model_type": "opt", "max_position_embeddings": 2048}, "no rotary positions"),
        ("linear", 4096, {"model_type": "nothing", "max_position_embeddings": 2048}, "does not know this model"),
        ("ntk", 4096, LLAMA, "expected one of none, linear"),
    ],
)
def test_what_cannot_be_extended_so_is_said(scaling: str, context: int | None, config: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        extend_config(config, rope_scaling=scaling, context_length=context)


def test_several_kinds_of_rotary_positions_are_refused_by_the_models_name():
    config = AutoConfig.for_model("gemma3_text").to_dict()
    with pytest.raises(RecipeError, match=r"gemma3_text\) has several kinds of rotary positions"):
        extend_config(config, rope_scaling="yarn", context_length=1 << 20)


def test_a_smaller_context_needs_no_scaling():
    assert extend_config(LLAMA, rope_scaling="none", context_length=256) == {**LLAMA, "max_position_embeddings": 256}
    assert extend_config(LLAMA, rope_scaling="none", context_length=None) == LLAMA


def test_a_dynamic_limit_counts_in_every_spelling():
    for key, name in (("rope_scaling", "type"), ("rope_parameters", "rope_type")):
        config = {**LLAMA, key: {name: "dynamic", "factor": 3.0}}
        assert context_length_of(config, Path("config.json")) == 1536


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_gets_the_next_id_and_the_mean_of_all_rows(tied: bool, tmp_path: Path):
    start = build_model(tmp_path / "mine", tie_word_embeddings=tied)
    size = len(load_tokenizer(start))
    done = extend(start, tmp_path / "m", tokens=(EOT, "<|im_end|>"))
    assert done.new_tokens == ((EOT, size),)  # the other was there
    tokenizer = load_tokenizer(tmp_path / "m")
    assert tokenizer.encode(f"broken{EOT} the", add_special_tokens=False) == [
        *tokenizer.encode("broken", add_special_tokens=False),
        size,
        *tokenizer.encode(" the", add_special_tokens=False),
    ]
    assert EOT in tokenizer.all_special_tokens or tokenizer.added_tokens_decoder[size].special
    old, new = (
        load_model(start, device="cpu", dtype=torch.bfloat16),
        load_model(tmp_path / "m", device="cpu", dtype=torch.bfloat16),
    )
    tables = [(old.get_input_embeddings().weight, new.get_input_embeddings().weight)]
    tables += [] if tied else [(old.get_output_embeddings().weight, new.get_output_embeddings().weight)]
    for before, after in tables:
        assert after.shape == (size + 1, 64)
        assert torch.equal(after[:size], before)
        assert torch.equal(after[size], before.double().mean(0).to(torch.bfloat16))
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(new(input_ids=ids).logits[..., :size], old(input_ids=ids).logits)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["vocab_size"] == size + 1


def test_rows_to_spare_are_used_before_the_table_grows(tmp_path: Path):
    size = len(build_tokenizer(tmp_path / "probe"))
    start = build_model(tmp_path / "mine", vocab_size=size + 2, tie_word_embeddings=False)
    extend(start, tmp_path / "m", tokens=("<|a|>", "<|b|>", "<|c|>"))
    before, after = Tensors(start), Tensors(tmp_path / "m")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = before.read(name), after.read(name)
        mean = old[:size].double().mean(0).to(old.dtype)  # rows without a token do not count
        assert new.shape[0] == size + 3
        assert torch.equal(new[:size], old[:size])
        assert torch.equal(new[size:], mean.expand(3, -1))
    extend(start, tmp_path / "n", tokens=("<|a|>",))
    assert Tensors(tmp_path / "n").read("lm_head.weight").shape[0] == size + 2


def test_the_bias_of_an_output_head_grows_with_it(tmp_path: Path):
    from transformers import AutoModelForCausalLM, PhiConfig

    tokenizer = build_tokenizer(tmp_path / "phi")
    config = PhiConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "phi")
    extend(tmp_path / "phi", tmp_path / "m", tokens=(EOT,))
    grown = load_model(tmp_path / "m", device="cpu", dtype=torch.float32)
    assert float(grown.lm_head.bias[-1].detach()) == pytest.approx(float(model.lm_head.bias.detach().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("",), "without space around them"),
        ((" <|x|>",), "without space around them"),
        (("<|x|>", "<|x|>"), "expected different texts"),
        (("the",), "'the' is a word of the vocabulary already"),
    ],
)
def test_texts_that_can_be_no_new_token_are_refused(
    tokens: tuple[str, ...], message: str, base_dir: Path, tmp_path: Path
):
    with pytest.raises(RecipeError, match=message):
        extend(base_dir, tmp_path / "m", tokens=tokens)


def test_a_scaled_view_changes_nothing_on_disk_and_goes_away(base_dir: Path):
    before = {path.name: path.read_bytes() for path in base_dir.iterdir()}
    with scaled_view(base_dir, rope_scaling="yarn", context_length=1024) as view:
        assert inspect_folder(view).context_length == 1024
        model = load_model(view, device="cpu", dtype=torch.float32)
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert not view.exists()
    assert {path.name: path.read_bytes() for path in base_dir.iterdir()} == before


def test_losses_of_tokens_are_those_of_the_whole_table_of_logits(base_dir: Path):
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    ids = [1, 40, 7, 7, 300, 12, 99, 5]
    logits = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    wanted = [-float(logits[place, token]) for place, token in enumerate(ids[1:])]
    assert head_is_all(model)
    for by_rows in (True, False):
        assert token_losses(model, ids, by_rows=by_rows).tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_cap_on_the_logits_is_not_forgotten():
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gemma2", vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=1.0, query_pre_attn_scalar=16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = [2, 5, 40, 9, 31]
    assert not head_is_all(model)
    logits = model(input_ids=torch.tensor([ids])).logits[0].detach().float().log_softmax(-1)
    wanted = [-float(logits[place, token]) for place, token in enumerate(ids[1:])]
    assert token_losses(model, ids, by_rows=False).tolist() == pytest.approx(wanted, abs=1e-5)


def test_losses_are_averaged_by_the_place_of_the_token(base_dir: Path):
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    torch.manual_seed(2)
    texts = [torch.randint(3, 390, (size,)).tolist() for size in (500, 300, 40)]
    report = measure_context(model, texts, length=200, max_windows=10, on_done=lambda done: None)
    windows = [texts[0][:200], texts[0][200:400], texts[0][400:], texts[1][:200], texts[1][200:], texts[2]]
    losses = [token_losses(model, window, by_rows=True).tolist() for window in windows]
    assert report.num_tokens == sum(map(len, losses)) == 840 - 6
    assert [(bucket.start, bucket.end) for bucket in report.buckets] == [(0, 64), (64, 128), (128, 200)]
    for bucket in report.buckets:
        inside = [loss for row in losses for place, loss in enumerate(row, 1) if bucket.start <= place < bucket.end]
        assert bucket.num_tokens == len(inside)
        assert bucket.mean_loss == pytest.approx(sum(inside) / len(inside), rel=1e-5)
    assert report.buckets[2].num_windows == 3
    assert report.buckets[0].stderr > 0
    few = measure_context(model, texts, length=200, max_windows=2, on_done=lambda done: None)
    assert (few.num_windows, few.buckets[2].num_tokens) == (2, 144)


def test_a_model_with_a_short_memory_shows_it():
    """A made-up model that predicts well up to position 100 and badly beyond."""

    class Forgetful:
        device = torch.device("cpu")

        def get_output_embeddings(self):
            return None

        def __call__(self, *, input_ids, use_cache):
            right = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 10).float() * 8
            right[:, 100:] = 0
            return type("Out", (), {"logits": right})

    report = measure_context(Forgetful(), [[1, 2, 3] * 100], length=256, max_windows=1, on_done=lambda done: None)
    near, middle, far = (bucket.mean_loss for bucket in report.buckets)
    assert near < 0.01
    assert middle == pytest.approx((36 + 1) * near / 64 + 27 * math.log(10) / 64, rel=0.05)
    assert far == pytest.approx(math.log(10), rel=1e-4)
    assert report.buckets[0].stderr == 0.0


def test_texts_too_short_to_tell_about_the_length_are_an_error(base_dir: Path):
    model = load_model(base_dir, device="cpu", dtype=torch.float32)
    for texts in ([[5] * 100], [[1]], []):
        with pytest.raises(DataError, match="which tells nothing about 200"):
            measure_context(model, texts, length=200, max_windows=5, on_done=lambda done: None)


def test_buckets_double_and_end_with_the_window():
    assert bucket_edges(64) == [0, 64]
    assert bucket_edges(300) == [0, 64, 128, 256, 300]
    assert bucket_edges(16) == [0, 16]


def test_tables_that_cannot_be_found_among_the_weights_are_an_error(base_dir: Path, tmp_path: Path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in base_dir.iterdir():
        (odd / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file, save_file

    weights = load_file(odd / "model.safetensors")
    weights["embedding"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, odd / "model.safetensors")
    with pytest.raises(ModelError, match="embedding table cannot be found"):
        extend(odd, tmp_path / "m", tokens=(EOT,))
