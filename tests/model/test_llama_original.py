"""Original LLaMA checkpoints: sharded here after the published layout, run by a plain copy of the published formulas."""

from __future__ import annotations

import json
import sys
from hashlib import md5
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from small_models import build_model
from tunesmith.errors import MissingExtra, ModelError, RecipeError
from tunesmith.events import Note
from tunesmith.model import llama_original, llama_tokenizer
from tunesmith.model.llama_original import read_original, write_original
from tunesmith.model.load import load_model
from tunesmith.model.tensor_files import Tensors

COLUMNS = ("wo", "w2")  # shared by columns; every other matrix by rows, norms by nobody
IDS = torch.tensor([[1, 5, 9, 200, 33, 7, 7, 100, 64, 2, 11, 250]])


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE with Llama's settings and 320 pieces."""
    spm = pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    folder = tmp_path_factory.mktemp("sp")
    lines = [
        "the quick brown fox jumps over the lazy dog",
        "the bicycle of my brother is broken",
        "refund or replace it",
    ]
    (folder / "text").write_text("\n".join(lines * 20), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def hf_model(folder: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    sizes = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return folder


def joined(folder: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of an original checkpoint, put together by the published rule."""
    shards = [torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pth"))]
    whole = {}
    dim = json.loads((folder / "params.json").read_text())["dim"]
    for name, first in shards[0].items():
        parts = [shard[name] for shard in shards]
        if first.ndim == 1:
            whole[name] = first
        elif name.startswith("tok_embeddings"):
            whole[name] = torch.cat(parts, 0 if first.shape[1] == dim else 1)
        else:
            whole[name] = torch.cat(parts, 1 if name.split(".")[-2] in COLUMNS else 0)
    return whole


def shard(
    whole: dict[str, torch.Tensor], folder: Path, num_shards: int, params: dict, *, by_rows: bool = False
) -> Path:
    """Write an original checkpoint."""
    folder.mkdir(parents=True)
    for number in range(num_shards):
        part = {}
        for name, tensor in whole.items():
            axis = 1 if name.split(".")[-2] in COLUMNS or (name.startswith("tok") and not by_rows) else 0
            part[name] = tensor if tensor.ndim == 1 else tensor.chunk(num_shards, axis)[number].clone()
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def run_original(weights: dict[str, torch.Tensor], params: dict, ids: torch.Tensor) -> torch.Tensor:
    """Logits by the published code's formulas: rotary positions as complex numbers over neighbouring pairs."""
    dim, heads = params["dim"], params["n_heads"]
    kv_heads, width = params.get("n_kv_heads", heads), dim // heads
    theta = params.get("rope_theta", 10000.0)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight

    frequencies = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(ids.shape[1]).float(), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, width / 2)

    def rotate(x: torch.Tensor) -> torch.Tensor:  # (T, H, width)
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(2)

    x = weights["tok_embeddings.weight"][ids[0]]
    for layer in range(params["n_layers"]):
        at = {name.split(".", 2)[2]: value for name, value in weights.items() if name.startswith(f"layers.{layer}.")}
        y = norm(x, at["attention_norm.weight"])
        q = rotate((y @ at["attention.wq.weight"].T).view(-1, heads, width))
        k = rotate((y @ at["attention.wk.weight"].T).view(-1, kv_heads, width))
        v = (y @ at["attention.wv.weight"].T).view(-1, kv_heads, width)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
        scores += torch.full_like(scores[0], float("-inf")).triu(1)
        x = x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ at["attention.wo.weight"].T
        y = norm(x, at["ffn_norm.weight"])
        gate = functional.silu(y @ at["feed_forward.w1.weight"].T) * (y @ at["feed_forward.w3.weight"].T)
        x = x + gate @ at["feed_forward.w2.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def same_tensors(first: Path, second: Path) -> None:
    here, there = Tensors(first), Tensors(second)
    assert set(here) == set(there)
    for name in here:
        assert here.spec(name) == there.spec(name)
        assert torch.equal(here.read(name), there.read(name)), name


CASES = {
    "llama-1": {},
    "grouped keys": {"num_key_value_heads": 8, "num_attention_heads": 16},
    "llama-3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize(
    ("case", "num_shards"),
    [
        ("llama-1", 1),
        ("llama-1", 2),
        ("grouped keys", 4),
        ("grouped keys", 8),
        ("llama-3", 2),
        ("llama-3", 8),
        ("tied", 4),
    ],
)
def test_transformers_to_original_and_back_keeps_every_bit_and_the_original_formulas_give_the_same_logits(
    case: str, num_shards: int, tmp_path: Path, sp_model: Path, sink
):
    start = hf_model(tmp_path / "hf", **CASES[case])
    (start / "tokenizer.model").write_bytes(sp_model.read_bytes())
    write_original(start, tmp_path / "original", num_shards=num_shards, events=sink)
    assert len(list((tmp_path / "original").glob("*.pth"))) == num_shards
    params = json.loads((tmp_path / "original" / "params.json").read_text())
    wanted = load_model(start, device="cpu", dtype=torch.float32)(input_ids=IDS).logits[0]
    torch.testing.assert_close(run_original(joined(tmp_path / "original"), params, IDS), wanted, atol=2e-4, rtol=1e-4)
    done = read_original(tmp_path / "original", tmp_path / "again", context_length=128, tokenizer=None, events=sink)
    assert (done.num_shards, done.tied) == (num_shards, case == "tied")
    same_tensors(start, tmp_path / "again")
    again = load_model(tmp_path / "again", device="cpu", dtype=torch.float32)
    assert torch.equal(again(input_ids=IDS).logits[0], wanted)
    ignored = ("transformers_version", "pretraining_tp", "pad_token_id", "initializer_range")
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hf", "again"))
    assert {k: v for k, v in before.items() if k not in ignored} == {k: v for k, v in after.items() if k not in ignored}


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_original_to_transformers_and_back_keeps_every_bit_and_params_json(
    num_shards: int, tmp_path: Path, sp_model: Path, sink
):
    params = {"dim": 64, "multiple_of": 32, "n_heads": 8, "n_layers": 1, "norm_eps": 1e-06, "vocab_size": -1}
    torch.manual_seed(1)
    names = {
        "tok_embeddings.weight": (320, 64), "norm.weight": (64,), "output.weight": (320, 64),
        "layers.0.attention.wq.weight": (64, 64), "layers.0.attention.wk.weight": (64, 64),
        "layers.0.attention.wv.weight": (64, 64), "layers.0.attention.wo.weight": (64, 64),
        "layers.0.feed_forward.w1.weight": (192, 64), "layers.0.feed_forward.w2.weight": (64, 192),
        "layers.0.feed_forward.w3.weight": (192, 64), "layers.0.attention_norm.weight": (64,),
        "layers.0.ffn_norm.weight": (64,),
    }  # fmt: skip
    whole = {name: torch.randn(shape).to(torch.float16) for name, shape in names.items()}
    whole["layers.0.attention.inner_attention.rope.freqs"] = torch.ones(4)
    folder = shard(whole, tmp_path / "LLaMA" / "7B", num_shards, params)
    (tmp_path / "LLaMA" / "tokenizer.model").write_bytes(sp_model.read_bytes())
    read_original(folder, tmp_path / "hf", context_length=None, tokenizer=None, events=sink)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["dtype"], config["intermediate_size"], config["max_position_embeddings"]) == ("float16", 192, 2048)
    assert "taken to be 2,048 tokens" in sink.events[-1].message
    write_original(tmp_path / "hf", tmp_path / "back", num_shards=num_shards, events=sink)
    assert json.loads((tmp_path / "back" / "params.json").read_text()) == params
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == sp_model.read_bytes()
    back = joined(tmp_path / "back")
    for name in names:
        assert torch.equal(back[name], whole[name]), name
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    assert torch.equal(back["rope.freqs"], frequencies.to(torch.float16))
    for line in (tmp_path / "back" / "checklist.chk").read_text().splitlines():
        digest, name = line.split()
        assert md5((tmp_path / "back" / name).read_bytes()).hexdigest() == digest


def test_the_embedding_of_llama_3_is_shared_by_rows_and_that_of_llama_1_by_columns(tmp_path: Path, sink):
    for name, theta, shape in (("one", 10000.0, (320, 16)), ("three", 500000.0, (80, 64))):
        start = hf_model(tmp_path / name, rope_parameters={"rope_type": "default", "rope_theta": theta})
        write_original(start, tmp_path / f"{name}-original", num_shards=4, events=sink)
        first = torch.load(tmp_path / f"{name}-original" / "consolidated.00.pth", weights_only=True)
        assert tuple(first["tok_embeddings.weight"].shape) == shape
        assert ("rope.freqs" in first) == (name == "one")
    assert "no tokenizer.model" in sink.events[-1].message


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, sp_model: Path, sink):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "params.json").write_text('{"dim": 64, "n_heads": 8, "n_layers": 1}')
    torch.save({"x": Path("/")}, folder / "consolidated.00.pth")
    with pytest.raises(ModelError, match="more than tensors"):
        read_original(folder, tmp_path / "hf", context_length=None, tokenizer=sp_model, events=sink)
    assert not (tmp_path / "hf").exists()


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, sp_model: Path, sink):
    start = hf_model(tmp_path / "hf")
    write_original(start, tmp_path / "o", num_shards=2, events=sink)

    def read(tokenizer: Path | None = sp_model) -> None:
        read_original(tmp_path / "o", tmp_path / "new", context_length=None, tokenizer=tokenizer, events=sink)

    with pytest.raises(ModelError, match=r"no tokenizer.model here or in the folder above"):
        read(None)
    second = tmp_path / "o" / "consolidated.01.pth"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match=r"md5 is not the one in checklist.chk"):
        read()
    (tmp_path / "o" / "checklist.chk").unlink()
    with pytest.raises(ModelError, match="the file is damaged"):
        read()
    second.unlink()
    with pytest.raises(ModelError, match=r"expected 320 rows|has the shape|expected \[320"):
        read()
    second.write_bytes(whole)
    (tmp_path / "o" / "consolidated.00.pth").unlink()
    with pytest.raises(
        ModelError, match=r"expected consolidated.00.pth and those that follow, found consolidated.01.pth"
    ):
        read()
    (tmp_path / "o" / "params.json").unlink()
    with pytest.raises(ModelError, match=r"there is no params.json"):
        read()
    assert not (tmp_path / "new").exists()


def test_an_unknown_tensor_is_refused_in_both_directions(tmp_path: Path, sp_model: Path, sink):
    start = hf_model(tmp_path / "hf")
    write_original(start, tmp_path / "o", num_shards=1, events=sink)
    (tmp_path / "o" / "checklist.chk").unlink()
    file = tmp_path / "o" / "consolidated.00.pth"
    torch.save({**torch.load(file, weights_only=True), "layers.0.attention.wq.lora": torch.ones(1)}, file)
    with pytest.raises(ModelError, match=r"holds layers.0.attention.wq.lora"):
        read_original(tmp_path / "o", tmp_path / "new", context_length=None, tokenizer=sp_model, events=sink)
    biased = hf_model(tmp_path / "biased", attention_bias=True)
    with pytest.raises(ModelError, match="no place for attention_bias"):
        write_original(biased, tmp_path / "x", num_shards=1, events=sink)


def test_a_number_of_shards_that_does_not_divide_the_model_is_refused_with_those_that_do(tmp_path: Path, sink):
    start = hf_model(tmp_path / "hf", num_key_value_heads=2)
    with pytest.raises(ModelError, match="2 key-value heads cannot be shared by 4 ranks") as caught:
        write_original(start, tmp_path / "x", num_shards=4, events=sink)
    assert caught.value.hint == "this model can be cut into 1, 2"
    with pytest.raises(RecipeError, match="expected at least 1 shard, found 0"):
        write_original(start, tmp_path / "x", num_shards=0, events=sink)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(RecipeError, match="something here already"):
        write_original(start, tmp_path / "full", num_shards=1, events=sink)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_model_without_tokenizer_model_comes_back_from_three_files_with_its_own_tokenizer(tmp_path: Path, sink):
    start = build_model(
        tmp_path / "hf",
        hidden_size=96,
        intermediate_size=192,
        vocab_size=402,
        num_attention_heads=6,
        num_key_value_heads=3,
    )
    write_original(start, tmp_path / "o", num_shards=3, events=sink)
    assert sorted(path.suffix for path in (tmp_path / "o").glob("consolidated*")) == [".pth"] * 3
    said = [event.message for event in sink.events if isinstance(event, Note)]
    assert said == [
        "the model has no tokenizer.model, and the original code reads no other tokenizer: its tokenizer.json lies beside "
        "the weights, for `tunesmith weights from-llama`"
    ]
    done = read_original(tmp_path / "o", tmp_path / "again", context_length=512, tokenizer=None, events=sink)
    assert (done.num_shards, done.tied) == (3, True)
    same_tensors(start, tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (start / name).read_bytes()
    config = json.loads((tmp_path / "again" / "config.json").read_bytes())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_a_tokenizer_json_that_names_no_end_of_text_is_refused(tmp_path: Path, sink):
    write_original(build_model(tmp_path / "hf"), tmp_path / "o", num_shards=1, events=sink)
    (tmp_path / "o" / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>"}')
    with pytest.raises(ModelError, match="no token is named for the end of a text"):
        read_original(tmp_path / "o", tmp_path / "again", context_length=512, tokenizer=None, events=sink)
    assert not (tmp_path / "again").exists()


def test_the_tokenizer_json_gives_the_ids_of_sentencepiece(tmp_path: Path, sp_model: Path, sink):
    import sentencepiece

    from tunesmith.chat.tokenizer import load_tokenizer

    start = hf_model(tmp_path / "hf")
    write_original(start, tmp_path / "o", num_shards=1, events=sink)
    read_original(tmp_path / "o", tmp_path / "new", context_length=128, tokenizer=sp_model, events=sink)
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == sp_model.read_bytes()
    tokenizer = load_tokenizer(tmp_path / "new")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    for text in ("the lazy bicycle", "  jumps  over ", "naïve 自転車 🚲\n\t12", " ", "x"):
        ids = tokenizer(text)["input_ids"]
        assert ids == [reference.bos_id(), *reference.encode(text)], text
        assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]


def test_a_merged_vocabulary_of_another_kind_is_refused_with_the_text_that_differs(
    tmp_path: Path, shared_data: Path, sink
):
    pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    start = hf_model(tmp_path / "hf")
    write_original(start, tmp_path / "o", num_shards=1, events=sink)
    unigram = shared_data / "zh" / "chinese_sp.model"
    with pytest.raises(ModelError, match=r"would cut .* texts otherwise"):
        read_original(tmp_path / "o", tmp_path / "new", context_length=128, tokenizer=unigram, events=sink)


def test_without_sentencepiece_the_extra_is_named_before_any_work(tmp_path: Path, sp_model: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtra, match="needs the package 'sentencepiece'") as error:
        llama_tokenizer.check_convertible(sp_model)
    assert "tunesmith[llama]" in str(error.value.hint)


def test_ranks_of_llama_3_become_the_same_ids_as_tiktoken_gives(tmp_path: Path, sink):
    tiktoken = pytest.importorskip("tiktoken", reason="the package tiktoken is not installed")
    import base64

    from tunesmith.chat.tokenizer import load_tokenizer
    from tunesmith.model.pretokenizers import PRE_TOKENIZERS

    words = [bytes([byte]) for byte in range(256)]
    words += [b"th", b"the", b" the", b" b", b"ic", b"icy", b" bicy", b"cle", b" bicycle", "é".encode(), b"12", b"123"]
    ranks = {word: rank for rank, word in enumerate(words)}
    lines = [base64.b64encode(word).decode() + f" {rank}\n" for word, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_text("".join(lines))
    start = hf_model(tmp_path / "hf", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    write_original(start, tmp_path / "o", num_shards=2, events=sink)
    read_original(
        tmp_path / "o", tmp_path / "new", context_length=128, tokenizer=tmp_path / "tokenizer.model", events=sink
    )
    pattern = PRE_TOKENIZERS["llama-bpe"]["pretokenizers"][0]["pattern"]["Regex"]
    reference = tiktoken.Encoding("toy", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    tokenizer = load_tokenizer(tmp_path / "new")
    for text in ("the bicycle, the 12345 café", "\n\n  they've", "bicycle the"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [268, 269, 274, 275, 277]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["bos_token_id"] == 268


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, sink, monkeypatch):
    hf_model(tmp_path / "hf")

    def interrupted(*_: object) -> None:
        assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == [".o.making"]
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_original, "save_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_original(tmp_path / "hf", tmp_path / "o", num_shards=1, events=sink)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
