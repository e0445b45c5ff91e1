"""What a user may hand over by mistake: fields of another type, files of two models, damaged ones. Each is an error that names
the file, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sentencepiece_file import model_bytes
from small_models import build_tokenizer
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.model.context import extend_model
from tunesmith.model.deltas import MANIFEST, apply_delta, make_delta
from tunesmith.model.folder import read_safetensors_header, weight_files
from tunesmith.model.llama_original import read_original, write_original
from tunesmith.model.load import load_model
from tunesmith.model.vocabulary.extension import Extension
from tunesmith.model.vocabulary.rows import grow_rows
from tunesmith.model.vocabulary.sentencepiece import read_sentencepiece

Change = Callable[[Path], object]
WQ, NORM, OUTPUT = "layers.0.attention.wq.weight", "norm.weight", "output.weight"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "hf"
    torch.manual_seed(3)
    size = len(build_tokenizer(folder))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=size + size % 2, max_position_embeddings=128, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    class Silent:
        def emit(self, event: object) -> None: ...

    folder = tmp_path_factory.mktemp("damaged") / "original"
    write_original(model_dir, folder, num_shards=2, events=Silent())
    (folder / "checklist.chk").unlink()
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Callable[[Path, Change], Path]:
    def copy(folder: Path, change: Change) -> Path:
        copied = tmp_path / "работа 模型"
        shutil.copytree(folder, copied)
        change(copied)
        return copied

    return copy


def field(file: str, name: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        fields = json.loads((folder / file).read_bytes())
        (folder / file).write_text(json.dumps({**fields, name: value}))

    return change


def tensor(name: Any, to: Callable[[torch.Tensor], Any], file: str = "consolidated.01.pth") -> Change:
    def change(folder: Path) -> None:
        shard = torch.load(folder / file, weights_only=True)
        torch.save({**shard, name: to(shard.get(name, torch.ones(2)))}, folder / file)

    return change


def flip_a_weight(folder: Path) -> None:
    """Inside the numbers of a file, where no header notices."""
    path = folder / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (field("params.json", "n_layers", 10**9), "it says 1,000,000,000 layers, and the weights have 2"),
        (field("params.json", "n_heads", True), "expected a number under `n_heads`, found True"),
        (field("params.json", "n_heads", 8), "of heads with 8 columns, params.json makes 4"),
        (field("params.json", "n_heads", 32), "32 columns, 32 heads and 32 key-value heads do not fit"),
        (field("params.json", "n_kv_heads", "4"), "expected a number under `n_kv_heads`, found '4'"),
        (field("params.json", "n_kv_heads", 3), "4 heads and 3 key-value heads do not fit"),
        (field("params.json", "vocab_size", [1]), "under `vocab_size`"),
        (field("params.json", "norm_eps", -1), "expected a number above 0 under `norm_eps`, found -1"),
        (field("params.json", "rope_theta", "x"), "under `rope_theta`, found 'x'"),
        (tensor(NORM, lambda weight: weight + 1), "norm.weight is not that of consolidated.00.pth"),
        (tensor(WQ, torch.Tensor.to_sparse), "layers.0.attention.wq.weight holds torch.sparse_coo"),
        (tensor(WQ, lambda weight: weight.to(torch.int8)), "torch.int8, expected plain floating-point numbers"),
        (tensor(WQ, lambda _: torch.tensor(1.0)), "has the shape"),
        (tensor(OUTPUT, lambda _: torch.tensor(1.0), "consolidated.00.pth"), "has the shape"),
        (tensor(3, lambda weight: weight), "expected tensors by name"),
        (flip_a_weight, "consolidated.00.pth: a checksum inside the file is wrong"),
    ],
)
def test_an_original_checkpoint_that_cannot_be_right_is_refused(
    change: Change, message: str, original: Path, work: Any, tmp_path: Path, sink: Any
) -> None:
    folder = work(original, change)
    with pytest.raises(ModelError) as caught:
        read_original(folder, tmp_path / "out", context_length=None, tokenizer=None, events=sink)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_weights_that_are_no_numbers_are_moved_as_they_are(
    original: Path, work: Any, tmp_path: Path, sink: Any
) -> None:
    """A conversion computes nothing, so it also hides nothing."""
    folder = work(original, tensor(WQ, lambda weight: weight * float("nan"), "consolidated.00.pth"))
    (folder / "checklist.chk").write_bytes(b"\xff\xfe no checklist")
    read_original(folder, tmp_path / "out é", context_length=None, tokenizer=None, events=sink)
    weight = load_file(tmp_path / "out é" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert weight[:16].isnan().all() and weight[16:].isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("architectures", 3, "runs LlamaForCausalLM, this is ?"),
        ("rope_parameters", "x", "expected an object under `rope_parameters`, found 'x'"),
        ("num_key_value_heads", 0, "expected a number under `num_key_value_heads`, found 0"),
        ("hidden_size", None, "expected a number under `hidden_size`, found None"),
        ("num_attention_heads", 3, "do not fit each other"),
        ("rms_norm_eps", "1e-5", "under `rms_norm_eps`, found '1e-5'"),
    ],
)
def test_a_config_with_a_field_of_another_kind_goes_to_no_original(
    name: str, value: Any, message: str, model_dir: Path, work: Any, tmp_path: Path, sink: Any
) -> None:
    folder = work(model_dir, field("config.json", name, value))
    with pytest.raises(ModelError) as caught:
        write_original(folder, tmp_path / "out", num_shards=2, events=sink)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("config.json", "max_position_embeddings", "x", "found 'x'"),
        ("config.json", "max_position_embeddings", 1.5, "found 1.5"),
        ("config.json", "rope_parameters", 3, "expected an object under `rope_parameters`, found 3"),
        ("config.json", "text_config", "x", "expected an object under `text_config`"),
        ("config.json", "hidden_size", "x", "hidden_size"),
        ("config.json", "model_type", [1], "transformers"),
        ("config.json", "vocab_size", None, "vocab_size"),
        ("tokenizer.json", "version", 7, "the tokenizer cannot be read"),
        ("tokenizer.json", "model", {}, "the tokenizer cannot be read"),
        ("tokenizer_config.json", None, None, "this is not JSON"),
    ],
)
def test_a_folder_with_a_field_of_another_kind_gets_no_new_tokens_and_no_longer_context(
    file: str, name: str | None, value: Any, message: str, model_dir: Path, work: Any, tmp_path: Path
) -> None:
    def cut(folder: Path) -> None:
        (folder / file).write_text("{")

    folder = work(model_dir, cut if name is None else field(file, name, value))
    options: dict[str, Any] = {"rope_scaling": "yarn", "context_length": 512, "add_tokens": ["<|x|>"]}
    with pytest.raises((ModelError, RecipeError)) as caught:
        extend_model(folder, tmp_path / "out", **options, on_done=lambda _done, _total: None)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_size", "x"), ("num_attention_heads", 0), ("model_type", [1]), ("vocab_size", None)]
)
def test_a_model_whose_config_transformers_cannot_use_is_named(
    name: str, value: Any, model_dir: Path, work: Any
) -> None:
    folder = work(model_dir, field("config.json", name, value))
    with pytest.raises(ModelError, match="transformers cannot load this model") as caught:
        load_model(folder, device="cpu", dtype=torch.float32)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [None], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]},
        {"dtype": 3, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        None,
    ],
)
def test_a_header_that_describes_no_tensor_is_damaged(entry: Any, tmp_path: Path) -> None:
    header = json.dumps({"w": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ModelError, match="the header is damaged"):
        read_safetensors_header(file)


def test_an_index_of_another_form_and_a_folder_that_is_none_are_named(model_dir: Path, work: Any) -> None:
    folder = work(model_dir, lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": [1]}'))
    with pytest.raises(ModelError, match="expected `weight_map`"):
        weight_files(folder)
    with pytest.raises(ModelError, match="there is no such model folder"):
        weight_files(folder / "config.json")


def test_a_delta_without_weights_is_refused_and_one_of_eight_bit_floats_is_added(
    model_dir: Path, work: Any, tmp_path: Path, sink: Any
) -> None:
    make_delta(model_dir, model_dir, tmp_path / "delta", sink)
    empty = work(tmp_path / "delta", field(MANIFEST, "weights", {}))
    with pytest.raises(ModelError, match=r"this is no delta\.json"):
        apply_delta(model_dir, empty, tmp_path / "out", sink)
    shutil.rmtree(empty)

    def eighths(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        small = {name: torch.full_like(each, 0.125).to(torch.float8_e4m3fn) for name, each in tensors.items()}
        save_file(small, folder / "model.safetensors")

    apply_delta(model_dir, work(model_dir, eighths), tmp_path / "out", sink)
    norm = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    assert norm.dtype == torch.float8_e4m3fn and norm.float().unique().tolist() == [1.125]


def test_rows_of_new_tokens_are_not_made_of_weights_that_are_no_numbers(
    model_dir: Path, work: Any, tmp_path: Path
) -> None:
    """They would be NaN, and the first to notice would be who uses the token."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][7, 3] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    folder = work(model_dir, damage)
    options: dict[str, Any] = {"rope_scaling": "none", "context_length": None, "add_tokens": ["<|x|>"]}
    with pytest.raises(ModelError, match=r"embed_tokens\.weight holds numbers that are not finite"):
        extend_model(folder, tmp_path / "out", **options, on_done=lambda _done, _total: None)
    model = load_model(folder, device="cpu", dtype=torch.float32)
    first = model.get_input_embeddings().weight.shape[0]
    extension = Extension(first, ("ab", "cd"), (("a", "b"), ("c", "d")), ((3, 5), (5, 7)))
    with pytest.raises(ModelError, match="the embeddings hold numbers that are not finite"):
        grow_rows(model, extension)


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_piece_whose_score_is_no_number_is_refused(score: float, tmp_path: Path) -> None:
    path = tmp_path / "pieces.model"
    path.write_bytes(model_bytes([("a", -1.0, 1), ("ab", score, 1)]))
    with pytest.raises(DataError, match="the piece 'ab' has the score"):
        read_sentencepiece(path)
