"""Stage pretrain on a tiny model: what it writes stands in for a base model, resumes, and exports."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from chinese_words import WORDS
from made_artifact import artifact
from sentencepiece_file import PIECES, model_bytes
from small_models import TEMPLATE, build_model
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import Metric
from tunesmith.exporting.checks import check_tokens
from tunesmith.exporting.gguf_file import Labels, plan_gguf, write_gguf
from tunesmith.exporting.native_tokens import tokenize_natively
from tunesmith.model.catalog import base_model_path
from tunesmith.model.load import load_model
from tunesmith.pipeline import STAGES
from tunesmith.protocols import Context
from tunesmith.recipe import BaseModelSection, Runtime
from tunesmith.recipe.pretrain import Pretrain
from tunesmith.stages import base_model as base_stage
from tunesmith.stages.corpus import TextTokenizer, cut_passages, read_corpus
from tunesmith.stages.pretrain import run
from tunesmith.types import Artifact, Inputs, Outcome

pytestmark = pytest.mark.slow


def as_artifact(path: Path, outcome: Outcome) -> Artifact:
    return artifact(path, outcome.kind, outcome.facts, counts=outcome.counts)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(3)
    rows = [{"text": "".join(draw.choices(WORDS, k=draw.randint(8, 40))) + "。"} for _ in range(80)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def call(tmp_path: Path, sink: Any, base_dir: Path, corpus_file: Path) -> Any:
    def start(folder: str = "out", *, events: Any = None, model: Path | None = None, **section: Any):
        base_out = tmp_path / f"base-{folder}"
        base_out.mkdir(exist_ok=True)
        runtime = Runtime(num_threads=1, precision=section.pop("precision", "fp32"), checkpoint_every_steps=1)
        ctx = Context(events=events or sink, runtime=runtime)
        base = base_stage.run(BaseModelSection(name=str(model or base_dir)), Inputs({}, {}), base_out, ctx)
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        options = {"num_test_texts": 8, "num_new_tokens": 60, "embedding_steps": 3, "max_steps": 4, "pack_length": 128}
        chosen = Pretrain(**{"files": "corpus.jsonl", **options, **section})
        files = {name: corpus_file.parent / name for name in chosen.file_names()}
        return out, run(chosen, Inputs({"base_model": as_artifact(base_out, base)}, files), out, ctx)

    return start


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, device="cpu", dtype=torch.float32).state_dict())


def test_it_stands_in_for_the_base_model_with_the_same_facts_and_a_place_of_its_own(call, tmp_path):
    out, outcome = call()
    base_facts = json.loads((tmp_path / "base-out" / "model.json").read_bytes())
    assert outcome.kind == "base_model"
    assert base_facts.keys() <= outcome.facts.keys()
    for name in ("licence", "architecture", "context_length", "template_digest", "source"):
        assert outcome.facts[name] == base_facts[name]
    assert outcome.facts["weights_digest"] != base_facts["weights_digest"] == outcome.facts["original_weights_digest"]
    assert outcome.facts["num_parameters"] == base_facts["num_parameters"] + 60 * 64
    moved = tmp_path / "committed"
    out.rename(moved)  # what the store does
    assert base_model_path(as_artifact(moved, outcome)) == moved / "model"
    assert json.loads((moved / "model.json").read_bytes()) == outcome.facts
    spec = next(spec for spec in STAGES if spec.name == "pretrain")
    assert (spec.stands_for, spec.needs) == ("base_model", ("base_model",))


def test_tokens_fall_and_so_do_bits_per_byte(call):
    out, outcome = call(max_steps=12, embedding_steps=6, learning_rate=3e-3)
    facts = outcome.facts
    assert facts["tokens_saved"] > 0.6
    assert facts["tokens_per_character_after"] < 0.4 * facts["tokens_per_character_before"]
    assert facts["bits_per_byte_after"] < facts["bits_per_byte_before"]
    report = json.loads((out / "report.json").read_bytes())
    assert report["tokens_after"] / report["num_bytes"] == pytest.approx(facts["tokens_per_byte_after"], abs=1e-4)
    losses = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in losses] == [
        *(("embeddings", step) for step in range(1, 7)),
        *(("all", step) for step in range(1, 13)),
    ]
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_the_folder_is_one_that_transformers_reads_and_the_pieces_are_listed(call, base_dir):
    out, _ = call()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    rows = [json.loads(line) for line in (out / "pieces.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == list(range(400, 460))
    assert all(tokenizer.decode([row["id"]]) == row["text"] for row in rows)
    config = json.loads((out / "model" / "config.json").read_bytes())
    assert config["vocab_size"] == len(tokenizer) == 460
    assert config["dtype"] == "bfloat16"  # as the base model's files
    chat = [{"role": "user", "content": "hi"}]
    old = AutoTokenizer.from_pretrained(base_dir)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == old.apply_chat_template(chat, tokenize=False)


def test_embeddings_are_trained_first_and_nothing_else(call, monkeypatch, base_dir):
    seen: list[set[str]] = []
    from tunesmith.stages import pretrain as stage

    def looked(model, samples, section, **options):
        seen.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        return original(model, samples, section, **options)

    original = stage.train
    monkeypatch.setattr(stage, "train", looked)
    call()
    everything = {name for name, _ in load_model(base_dir, device="cpu", dtype=torch.float32).named_parameters()}
    assert seen == [{"model.embed_tokens.weight"}, everything]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_second_phase_trains_the_embeddings_too(call, precision):
    # In bf16 the first phase hangs a collector of gradients on the weights it trained: it must not stay there.
    one = tensors(call("one", max_steps=1, learning_rate=1e-2, precision=precision)[0] / "model")
    two = tensors(call("two", max_steps=3, learning_rate=1e-2, precision=precision)[0] / "model")
    name = "model.embed_tokens.weight"
    assert not torch.equal(one[name], two[name])
    assert torch.equal(one["lm_head.weight"], one[name])


def test_lora_is_merged_and_leaves_frozen_weights_alone(call, base_dir):
    out, _ = call(method="lora", lora_rank=4, learning_rate=1e-2)
    before, after = tensors(base_dir), tensors(out / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name][: before[name].shape[0]])}
    assert {name for name in before if "norm" in name} & changed == set()
    assert {name for name in before if name.endswith("proj.weight")} <= changed


def test_rows_that_are_brought_to_their_frequencies_start_with_a_smaller_loss(call, tmp_path):
    folder = build_model(tmp_path / "alike")
    model = load_model(folder, device="cpu", dtype=torch.bfloat16)
    with torch.no_grad():  # hidden states share a direction, as those of real models do
        model.get_input_embeddings().weight += 2 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    first: dict[str, float] = {}
    for rows in ("mean", "calibrated"):
        out, _ = call(rows, model=folder, new_rows=rows, embedding_steps=0, max_steps=1)
        first[rows] = json.loads((out / "losses.jsonl").read_text().splitlines()[0])["loss"]
    assert first["calibrated"] < 0.9 * first["mean"]


def test_rows_stay_means_where_hidden_states_share_no_direction(call):
    losses = [call(rows, new_rows=rows)[0] / "losses.jsonl" for rows in ("mean", "calibrated")]
    assert losses[0].read_bytes() == losses[1].read_bytes()


def test_every_held_out_passage_is_listed_with_its_bits_and_the_change_has_an_error(call):
    out, outcome = call()
    rows = [json.loads(line) for line in (out / "held-out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == outcome.counts["held_out_texts"] == 8
    assert all(row["num_bytes"] == len(row["text"].encode()) for row in rows)
    size = sum(row["num_bytes"] for row in rows)
    for side in ("before", "after"):
        mean = sum(row[f"bits_{side}"] for row in rows) / size
        assert outcome.facts[f"bits_per_byte_{side}"] == pytest.approx(mean, abs=1e-4)
    changes = [row["bits_after"] / row["num_bytes"] - row["bits_before"] / row["num_bytes"] for row in rows]
    spread = np.std(changes, ddof=1) / 8**0.5
    assert outcome.facts["bits_per_byte_change_stderr"] == pytest.approx(spread, rel=0.5)


def test_an_untied_head_grows_and_is_trained(call, tmp_path):
    model = build_model(tmp_path / "untied", tie_word_embeddings=False)
    out, _ = call(model=model)
    after = tensors(out / "model")
    assert after["lm_head.weight"].shape == after["model.embed_tokens.weight"].shape == (460, 64)
    assert not torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])


class Stopping:
    """Interrupts at a step of a phase."""

    def __init__(self, metric: int) -> None:
        self.left = metric

    def emit(self, event: Any) -> None:
        if isinstance(event, Metric):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_killed_run_goes_on_where_it_stopped_with_the_same_result(call, stop_after):
    whole, _ = call("whole")
    with pytest.raises(KeyboardInterrupt):
        call("cut", events=Stopping(stop_after))
    again, _ = call("cut")
    for name in ("losses.jsonl", "held-out.jsonl", "report.json", "model/model.safetensors", "model/tokenizer.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.parametrize("source", ["learned", "sentencepiece"])
def test_llama_cpp_cuts_text_with_the_exported_vocabulary_as_we_do(call, corpus_file, tmp_path, source):
    (corpus_file.parent / "tiny.model").write_bytes(model_bytes(PIECES))
    options = {"sentencepiece": "tiny.model", "num_new_tokens": "auto"} if source == "sentencepiece" else {}
    out, outcome = call(max_steps=1, embedding_steps=0, **options)
    folder, gguf = out / "model", tmp_path / "x.gguf"
    labels = Labels("tiny", "apache-2.0", "tiny")
    plan = plan_gguf(folder, quantisation="f16", chat_template=TEMPLATE, stop_ids=(2,), labels=labels)
    write_gguf(plan, gguf, num_threads=1, on_done=lambda done: None)
    assert len(plan.vocabulary.tokens) == 400 + outcome.facts["num_new_tokens"]
    found = check_tokens(
        folder / "tokenizer.json", lambda texts: tokenize_natively(gguf, texts, parse_special=True), gguf
    )
    assert found["num_equal"] == found["num_strings"] == 500
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(tokenizer.encode("自行车").ids) == 1
    texts = [json.loads(line)["text"] for line in corpus_file.read_text(encoding="utf-8").splitlines()][:20]
    assert tokenize_natively(gguf, texts, parse_special=True) == [tokenizer.encode(text).ids for text in texts]


def test_no_new_tokens_means_plain_continued_pretraining(call, base_dir):
    out, outcome = call(num_new_tokens=0)
    assert outcome.facts["tokens_saved"] == 0.0
    assert (out / "model" / "tokenizer.json").is_file()
    losses = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in losses} == {"all"}


def test_packs_longer_than_the_context_are_refused(call):
    with pytest.raises(RecipeError, match="more than the model reads"):
        call(pack_length=1024)


def test_conversations_are_left_out_with_their_reason(tmp_path):
    rows = [{"text": "第一段。"}, {"text": " "}, {"text": "第二段。"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "b.jsonl").write_text(json.dumps(chat) + "\n")
    corpus = read_corpus([("a.jsonl", tmp_path / "a.jsonl"), ("b.jsonl", tmp_path / "b.jsonl")], 1, 17, 512)
    assert corpus.num_documents == 2
    assert sorted(row.reason for row in corpus.excluded) == ["empty_text", "not_text"]
    assert sorted([*corpus.texts, *corpus.test_texts]) == ["第一段。", "第二段。"]


def test_what_is_held_out_is_learnt_nowhere(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"句子{n % 5}。"}) + "\n" for n in range(20)))
    corpus = read_corpus([("a", tmp_path / "a.jsonl")], 1, 17, 512)
    assert corpus.test_texts[0] not in corpus.texts
    assert (len(corpus.texts), corpus.num_repeats) == (16, 3)


def test_a_held_out_passage_fits_the_context_whatever_the_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(0x4E00 + n) for n in range(300)), encoding="utf-8")
    corpus = read_corpus([("a", tmp_path / "a.txt")], 2, 17, 201)
    assert [len(text) for text in corpus.test_texts] == [50, 50]
    assert sum(map(len, corpus.texts)) == 200


def test_a_corpus_without_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "只有一段。"}) + "\n")
    with pytest.raises(DataError, match="one passage"):
        read_corpus([("a", tmp_path / "a.jsonl")], 1, 17, 512)


@pytest.mark.parametrize(
    "text", ["甲。乙！丙？" * 100, "no end " * 300, "一" * 1203, "a.\n\nb.\n", "。", "1.5 is. Yes.  "]
)
def test_passages_are_the_text_again_and_none_is_much_too_long(text):
    passages = cut_passages(text, 100)
    assert "".join(passages) == text
    assert all(0 < len(passage) <= 100 + 7 for passage in passages)


def test_samples_begin_with_the_separator_and_every_text_ends_in_one(base_dir):
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    ids = tokenizer.encode("where is my order?").ids
    assert len(ids) > 4
    samples = TextTokenizer(tokenizer, 0).training_samples(["where is my order?", "a"], 5)
    pieces = np.split(samples.input_ids, samples.ends[:-1])
    assert all(piece[0] == 0 and len(piece) <= 5 for piece in pieces)
    flat = [index for piece in pieces for index in piece[1:].tolist()]
    assert flat == [*ids, 0, *tokenizer.encode("a").ids, 0]
    assert samples.num_targets.sum() == len(flat)
    whole = TextTokenizer(tokenizer, 0).test_samples(["where is my order?"])
    assert whole.input_ids.tolist() == [0, *ids]


def test_control_strings_in_text_are_ordinary_text(base_dir):
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    samples = TextTokenizer(tokenizer, 0).test_samples(["a<|im_end|>b"])
    assert 2 not in samples.input_ids.tolist()


def test_a_second_run_in_the_same_folder_leaves_no_old_weights(call):
    out, _ = call()
    shutil.copyfile(out / "model" / "model.safetensors", out / "model" / "model-00002-of-00002.safetensors")
    again, _ = call()
    assert [path.name for path in (again / "model").glob("*.safetensors*")] == ["model.safetensors"]
