"""GGUF files read: there and back without loss, and every kind of bad file refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import STOP_ID, TEMPLATE, build_model
from tunesmith.errors import ModelError
from tunesmith.exporting.gguf_file import Labels, plan_gguf, write_gguf
from tunesmith.model.gguf import convert_gguf, convert_gguf_tokenizer, read_gguf_metadata
from tunesmith.model.pretokenizers import PRE_TOKENIZERS, same_rule


def make_gguf(folder: Path, kind: str = "llama", pre_tokenizer: str = "smollm", quantisation: str = "f16") -> Path:
    model_dir = build_model(folder / "model", kind, pre_tokenizer=pre_tokenizer)
    plan = plan_gguf(
        model_dir,
        quantisation=quantisation,
        chat_template=TEMPLATE,
        stop_ids=(STOP_ID,),
        labels=Labels("small", "apache-2.0", "base"),
    )
    write_gguf(plan, folder / "small.gguf", num_threads=1, on_done=lambda done: None)
    return folder / "small.gguf"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_written_as_f16_comes_back_to_f16s_smallest_step(tmp_path, kind):
    convert_gguf(make_gguf(tmp_path, kind), tmp_path / "back")
    there, back = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert there.keys() == back.keys()
    for name, tensor in there.items():
        assert back[name].dtype == torch.bfloat16
        assert torch.allclose(back[name].float(), tensor.float(), rtol=0, atol=2**-24), name


@pytest.mark.parametrize("pre_tokenizer", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_the_tokenizer_comes_back_with_the_same_ids(tmp_path, pre_tokenizer):
    convert_gguf_tokenizer(make_gguf(tmp_path, pre_tokenizer=pre_tokenizer), tmp_path / "back")
    there, back = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "back"))
    text = "In 2024 they've paid 1,234.50 for it!\n\n  <|im_end|>自転車 🚲 where is my order"
    assert back.encode(text) == there.encode(text)
    assert back.chat_template == TEMPLATE
    assert back.eos_token_id == STOP_ID
    assert back.model_max_length == 512


def test_digits_are_split_as_the_name_smollm_says(tmp_path):
    convert_gguf_tokenizer(make_gguf(tmp_path), tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2024", add_special_tokens=False)] == ["2", "0", "2", "4"]


def test_the_folder_says_which_ids_end_an_answer_and_nothing_of_this_machine(tmp_path):
    convert_gguf(make_gguf(tmp_path), tmp_path / "back")
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_bytes())
    assert generation == {"bos_token_id": 1, "eos_token_id": [STOP_ID], "pad_token_id": 0}
    for path in (tmp_path / "back").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o044 == 0o044
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").generation_config.eos_token_id == [STOP_ID]


def test_converting_prints_nothing(tmp_path, capfd):
    gguf = make_gguf(tmp_path)
    capfd.readouterr()
    convert_gguf(gguf, tmp_path / "back")
    assert capfd.readouterr() == ("", "")


def test_metadata_tells_licence_context_and_size(tmp_path):
    values = read_gguf_metadata(make_gguf(tmp_path))
    assert values["general.license"] == "apache-2.0"
    assert values["context_length"] == 512
    assert values["num_parameters"] == sum(
        t.numel() for t in load_file(tmp_path / "model" / "model.safetensors").values()
    )
    assert "tokenizer.ggml.tokens" not in values


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.9999])
def test_a_file_that_is_cut_is_refused(tmp_path, share):
    gguf = make_gguf(tmp_path)
    data = gguf.read_bytes()
    gguf.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"damaged|not a GGUF file"):
        read_gguf_metadata(gguf)


@pytest.mark.parametrize("place", [4, 8, 16, 24])
def test_a_header_with_impossible_numbers_is_refused(tmp_path, place):
    gguf = make_gguf(tmp_path)
    data = bytearray(gguf.read_bytes())
    data[place : place + 8] = struct.pack("<Q", 1 << 60)
    gguf.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        read_gguf_metadata(gguf)


@pytest.mark.parametrize("damaged", ["a key", "a token"])
def test_a_flipped_letter_that_only_transformers_notices_is_an_error_of_the_file(tmp_path, damaged):
    gguf = make_gguf(tmp_path)
    data = bytearray(gguf.read_bytes())
    place = data.index(b"llama.embedding_length") if damaged == "a key" else data.index("naïve".encode()[:3])
    data[place + 3] = 0xFF if damaged == "a token" else ord("X")  # a token is then no UTF-8
    gguf.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="transformers cannot read this GGUF file"):
        convert_gguf(gguf, tmp_path / "out")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(ModelError, match="this is not a GGUF file"):
        read_gguf_metadata(tmp_path / "a.gguf")


def write_header(path: Path, architecture: str, *, pre: str = "smollm", model: str = "gpt2", parts: int = 1) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_context_length(64)
    writer.add_uint16("split.count", parts)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "falcon"}, "architecture 'falcon' cannot be made trainable"),
        ({"architecture": "llama", "pre": "default"}, r"tokenizer \(gpt2, default\) cannot be rebuilt"),
        ({"architecture": "llama", "model": "llama"}, r"tokenizer \(llama, smollm\) cannot be rebuilt"),
        ({"architecture": "llama", "parts": 3}, "one part of several"),
    ],
)
def test_a_file_that_cannot_be_converted_faithfully_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        convert_gguf(write_header(tmp_path / "a.gguf", **changes), tmp_path / "back")


def test_pre_tokenizers_are_found_by_what_they_do():
    for name, rule in PRE_TOKENIZERS.items():
        assert same_rule(rule) == name
    assert (
        same_rule({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}) == "gpt-2"
    )
    assert same_rule({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}) is None
    assert same_rule(None) is None
