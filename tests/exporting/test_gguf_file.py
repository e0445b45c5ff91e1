"""GGUF files written, read back with the public reader, and run in llama.cpp beside transformers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_models import STOP_ID, TEMPLATE, build_model
from tunesmith.errors import ExportError
from tunesmith.exporting.agreement import collect_answers, compare_answers
from tunesmith.exporting.checks import check_answers, check_read_back, check_tokens
from tunesmith.exporting.gguf_file import Labels, check_exportable, plan_gguf, write_gguf
from tunesmith.exporting.native_tokens import tokenize_natively
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.protocols import Prompt

pytestmark = pytest.mark.slow

LABELS = Labels("small-tuned", "apache-2.0", "small")


def write(model_dir: Path, path: Path, quantisation: str = "f16", num_threads: int = 1):
    plan = plan_gguf(model_dir, quantisation=quantisation, chat_template=TEMPLATE, stop_ids=(STOP_ID,), labels=LABELS)
    write_gguf(plan, path, num_threads=num_threads, on_done=lambda done: None)
    return plan


def agreement(model_dir: Path, gguf: Path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = ["where is my order 12345?", "the quick brown fox", "自転車 🚲"]
    prompts = [Prompt(tuple(tokenizer.encode(text, add_special_tokens=False)), (STOP_ID,)) for text in texts]
    with LlamaCppEngine(gguf, context_length=256, num_slots=1, num_threads=1, exact=True) as engine:
        answers = asyncio.run(collect_answers(engine, prompts, 24, lambda done: None))
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return compare_answers(model, prompts, answers)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"head_dim": 32}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("llama", {"rope_parameters": YARN}),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 4, "beta_slow": 0.5}}),
        ("qwen2", {"rope_parameters": YARN}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
    ],
)
def test_llama_cpp_gives_the_log_probabilities_of_transformers(tmp_path, kind, changes):
    model_dir = build_model(tmp_path / "model", kind, **changes)
    write(model_dir, tmp_path / "m.gguf")
    found = agreement(model_dir, tmp_path / "m.gguf")
    assert found.num_tokens > 40
    assert found.mean_logprob_difference < 0.01
    assert check_answers(found, "f16", tmp_path / "m.gguf")["num_prompts"] == 3


def test_a_file_with_unpermuted_queries_does_not_pass_the_answer_check(tmp_path, monkeypatch):
    model_dir = build_model(tmp_path / "model")
    monkeypatch.setattr("tunesmith.exporting.gguf_file.arrange", lambda values, hf_name, shape: values)
    write(model_dir, tmp_path / "m.gguf")
    for quantisation in ("f16", "q8_0", "q4_k_m"):
        with pytest.raises(ExportError, match="does not answer as the merged model does"):
            check_answers(agreement(model_dir, tmp_path / "m.gguf"), quantisation, tmp_path / "m.gguf")


@pytest.mark.parametrize("quantisation", ["f16", "q8_0", "q4_k_m"])
def test_every_tensor_reads_back_with_its_values(tmp_path, quantisation):
    model_dir = build_model(tmp_path / "model", "qwen2", hidden_size=256, intermediate_size=512)
    plan = write(model_dir, tmp_path / "m.gguf", quantisation)
    found = check_read_back(plan, tmp_path / "m.gguf")
    weights = load_file(model_dir / "model.safetensors")
    reader = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert len(reader) == len(weights) == found["num_tensors"]
    for tensor in plan.tensors:
        expected = weights[tensor.hf_name].float().numpy()
        back = quants.dequantize(reader[tensor.name].data, reader[tensor.name].tensor_type).reshape(expected.shape)
        worst = {"F32": 0, "F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.04, "Q4_K": 0.12}[tensor.kind.name]
        assert np.sqrt(np.mean((back - expected) ** 2)) <= worst * np.sqrt(np.mean(expected**2)) + 1e-12, tensor.name
    size = (tmp_path / "m.gguf").stat().st_size
    assert plan.size_bytes < size < plan.size_bytes + 60_000


def test_q4_k_m_mixes_types_as_llama_cpp_does(tmp_path):
    model_dir = build_model(tmp_path / "a", hidden_size=256, intermediate_size=512, num_hidden_layers=8)
    plan = plan_gguf(model_dir, quantisation="q4_k_m", chat_template=TEMPLATE, stop_ids=(2,), labels=LABELS)
    kinds = {tensor.name: tensor.kind.name for tensor in plan.tensors}
    assert kinds["token_embd.weight"] == "Q6_K"  # tied: it is the output head too
    assert [kinds[f"blk.{i}.ffn_down.weight"] for i in range(8)] == [
        "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K",
    ]  # fmt: skip
    assert kinds["blk.1.attn_q.weight"] == "Q4_K"
    assert kinds["blk.1.attn_norm.weight"] == "F32"


def test_rows_too_narrow_for_k_quants_fall_back(tmp_path):
    model_dir = build_model(tmp_path / "a", hidden_size=96, intermediate_size=256, num_attention_heads=4)
    plan = plan_gguf(model_dir, quantisation="q4_k_m", chat_template=TEMPLATE, stop_ids=(2,), labels=LABELS)
    kinds = {tensor.name: tensor.kind for tensor in plan.tensors}
    assert kinds["blk.0.attn_q.weight"] is GGMLQuantizationType.Q5_0
    assert kinds["token_embd.weight"] is GGMLQuantizationType.Q8_0
    assert kinds["blk.0.ffn_down.weight"] in (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K)


def test_the_same_model_gives_the_same_bytes_whatever_the_threads(tmp_path):
    model_dir = build_model(tmp_path / "model", hidden_size=256, intermediate_size=512)
    write(model_dir, tmp_path / "a.gguf", "q4_k_m", num_threads=1)
    write(model_dir, tmp_path / "b.gguf", "q4_k_m", num_threads=4)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_metadata_says_what_the_model_is(tmp_path):
    model_dir = build_model(tmp_path / "model")
    write(model_dir, tmp_path / "m.gguf", "q8_0")
    reader = GGUFReader(tmp_path / "m.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.name"] == "small-tuned"
    assert values["general.license"] == "apache-2.0"
    assert values["general.file_type"] == 7
    assert values["llama.context_length"] == 512
    assert values["llama.attention.head_count_kv"] == 2
    assert values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.eos_token_id"] == STOP_ID
    assert values["tokenizer.ggml.add_bos_token"] is False
    assert values["tokenizer.chat_template"] == TEMPLATE


def test_further_stop_ids_become_end_of_turn(tmp_path):
    model_dir = build_model(tmp_path / "model")
    plan = plan_gguf(model_dir, quantisation="f16", chat_template=TEMPLATE, stop_ids=(2, 0), labels=LABELS)
    write_gguf(plan, tmp_path / "m.gguf", num_threads=1, on_done=lambda done: None)
    assert check_read_back(plan, tmp_path / "m.gguf")["stop_ids"] == [2, 0]


@pytest.mark.parametrize("pre_tokenizer", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_llama_cpp_splits_500_texts_as_our_tokenizer(tmp_path, pre_tokenizer):
    model_dir = build_model(tmp_path / "model", pre_tokenizer=pre_tokenizer)
    if pre_tokenizer == "llama-bpe":
        edit(model_dir / "tokenizer.json", lambda raw: raw["model"].update(ignore_merges=True))
    write(model_dir, tmp_path / "m.gguf")
    found = check_tokens(
        model_dir / "tokenizer.json",
        lambda texts: tokenize_natively(tmp_path / "m.gguf", texts, parse_special=True),
        tmp_path / "m.gguf",
    )
    assert found == {"num_strings": 500, "num_equal": 500, "num_not_normalised": 0}


def test_a_wrong_pre_tokenizer_does_not_pass_the_token_check(tmp_path):
    model_dir = build_model(tmp_path / "model", pre_tokenizer="gpt-2")
    write(model_dir, tmp_path / "m.gguf")
    edit(model_dir / "tokenizer.json", lambda raw: raw.update(pre_tokenizer=SMOLLM))
    with pytest.raises(ExportError, match="into other tokens"):
        check_tokens(
            model_dir / "tokenizer.json",
            lambda texts: tokenize_natively(tmp_path / "m.gguf", texts, parse_special=True),
            tmp_path / "m.gguf",
        )


SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def edit(path: Path, change) -> None:
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_text(json.dumps(raw))


CANNOT = [
    ("config.json", lambda c: c.update(architectures=["FalconForCausalLM"]), "cannot be written for FalconForCausalLM"),
    ("config.json", lambda c: c.update(rope_parameters={"rope_type": "dynamic", "rope_theta": 1.0}), "'dynamic'"),
    ("config.json", lambda c: c.update(rope_parameters={"rope_type": "yarn", "mscale": 0.7}), "yarn with mscale"),
    ("config.json", lambda c: c.update(rope_parameters={"rope_type": "yarn", "truncate": False}), "truncate: false"),
    ("config.json", lambda c: c.update(hidden_act="gelu"), "'gelu'"),
    ("config.json", lambda c: c.update(use_sliding_window=True), "sliding-window"),
    ("config.json", lambda c: c.update(num_hidden_layers=3), "blk.2"),
    ("config.json", lambda c: c.update(vocab_size=5), "only 5 embeddings"),
    ("tokenizer.json", lambda t: t["model"].update(type="WordPiece"), "type WordPiece"),
    ("tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer"),
    ("tokenizer.json", lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
]


@pytest.mark.parametrize(("name", "change", "message"), CANNOT)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, name, change, message):
    model_dir = build_model(tmp_path / "model")
    edit(model_dir / name, change)
    with pytest.raises(ExportError, match=message):
        check_exportable(model_dir, (STOP_ID,))


def test_a_model_that_can_be_written_passes(tmp_path):
    check_exportable(build_model(tmp_path / "model"), (STOP_ID,))


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (1e6, "beyond 65,504")])
def test_values_that_f16_cannot_hold_are_an_error_that_names_the_tensor(tmp_path, value, message):
    model_dir = build_model(tmp_path / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=f"blk.1.ffn_up.weight holds values.*{message}"):
        write(model_dir, tmp_path / "m.gguf")
