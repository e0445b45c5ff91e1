"""tokenize with `overlong: split` and `write_text`: pieces fit, counts add up, the text files hold what the arrays hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from made_artifact import artifact
from tunesmith.chat.templates import load_template
from tunesmith.recipe import Tokenize
from tunesmith.stages import tokenize
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Conversation, Excluded, Inputs, Message, Task


def talk(*lengths: int) -> Conversation:
    messages: list[Message] = []
    for number, length in enumerate(lengths):
        messages += [Message(role="user", content=f"q{number}"), Message(role="assistant", content="a" * length)]
    return Conversation(messages=messages, source=f"rows.jsonl:{lengths[0]}")


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """A byte-level tokenizer with the chatml template; a row that fits, one to cut, one of which nothing fits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    fast.chat_template = load_template("chatml")
    fast.save_pretrained(tmp_path / "model")
    write_records(tmp_path / "train.jsonl", [talk(10), talk(40, 40, 300, 41), talk(400)])
    write_records(tmp_path / "test.jsonl", [talk(42, 43, 44)])
    write_records(tmp_path / "task.json", [Task()])
    monkeypatch.setattr(tokenize, "base_model_path", lambda _: tmp_path / "model")
    base = artifact(tmp_path, "base_model", {"context_length": 512})
    return Inputs({"curate": artifact(tmp_path, "curated"), "base_model": base}, {})


def test_long_rows_become_pieces_and_the_text_files_hold_the_arrays(tmp_path: Path, inputs: Inputs, ctx):
    out = tmp_path / "out"
    out.mkdir()
    outcome = tokenize.run(Tokenize(max_length=160, overlong="split", write_text=True), inputs, out, ctx)
    counts = outcome.counts
    assert (counts["rows"], counts["rows_split"], counts["pieces"], counts["exchanges_left_out"]) == (3, 1, 2, 1)
    assert (counts["samples"], counts["dropped"], counts["dropped_overlong"]) == (3, 1, 1)
    assert counts["rows"] - counts["rows_split"] + counts["pieces"] == counts["samples"] + counts["dropped"]
    (dropped,) = read_records(out / "dropped.jsonl", Excluded)
    assert dropped.where == "rows.jsonl:400"
    arrays = load_file(out / "samples.safetensors")
    train = [json.loads(line) for line in (out / "tokens.train.jsonl").read_text().splitlines()]
    assert np.concatenate([row["input_ids"] for row in train]).tolist() == arrays["input_ids"].tolist()
    assert np.concatenate([row["loss_mask"] for row in train]).tolist() == arrays["loss_mask"].tolist()
    assert train[1]["text"].count("<|im_start|>user") == 2 and train[2]["text"].startswith("<|im_start|>user\nq3")
    test = [json.loads(line) for line in (out / "tokens.test.jsonl").read_text().splitlines()]
    assert [row["text"].count("assistant") for row in test] == [2, 1]
    assert all(len(row["input_ids"]) <= 160 for row in [*train, *test])
