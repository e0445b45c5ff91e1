"""The tokenize stage: counts add up, auto values become facts, bytes repeat, bad rows and settings say what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from made_artifact import artifact
from tunesmith.chat.templates import load_template
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe import Tokenize
from tunesmith.stages import tokenize
from tunesmith.stages.tokenize import TokenizedRow, load_sample
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.training.batches import load_samples
from tunesmith.types import Conversation, Excluded, Inputs, Message, Outcome, Task


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """A byte-level tokenizer with a chat template of its own; no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = load_template("chatml")
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


def conversation(question: str, answer: str, source: str = "") -> Conversation:
    return Conversation(
        messages=[Message(role="user", content=question), Message(role="assistant", content=answer)], source=source
    )


ROWS = [conversation("ab" * n, "cd" * n, f"seeds.jsonl:{n}") for n in (1, 2, 3, 40)]


@pytest.fixture
def inputs(tmp_path: Path, model_dir: Path, monkeypatch) -> Inputs:
    return make_inputs(tmp_path, model_dir, monkeypatch, ROWS)


def make_inputs(tmp_path: Path, model_dir: Path, monkeypatch, rows, files=None) -> Inputs:
    curated = tmp_path / "curate"
    curated.mkdir(exist_ok=True)
    write_records(curated / "train.jsonl", rows)
    (curated / "task.json").write_text(Task(system_prompt="Be brief.").model_dump_json())
    monkeypatch.setattr(tokenize, "base_model_path", lambda artifact: model_dir)
    return Inputs(
        artifacts={
            "curate": artifact(curated, "curated", {}),
            "base_model": artifact(tmp_path, "base_model", {"context_length": 512}),
        },
        files=files or {},
    )


def run(tmp_path: Path, inputs: Inputs, ctx, name: str = "out", **section) -> tuple[Outcome, Path]:
    out = tmp_path / name
    out.mkdir()
    return tokenize.run(Tokenize(**section), inputs, out, ctx), out


def test_the_files_hold_what_the_facts_say(tmp_path, inputs, ctx, sink):
    outcome, out = run(tmp_path, inputs, ctx)
    arrays = load_file(out / "samples.safetensors")
    rows = read_records(out / "rows.jsonl", TokenizedRow)
    assert outcome.kind == "tokenized"
    assert {name: (str(array.dtype), array.ndim) for name, array in arrays.items()} == {
        "input_ids": ("int32", 1),
        "loss_mask": ("uint8", 1),
        "owner": ("int16", 1),
        "lengths": ("int64", 1),
    }
    lengths = arrays["lengths"].tolist()
    assert [row.id for row in rows] == [row.id for row in ROWS]
    assert [row.length for row in rows] == lengths
    assert [row.num_supervised for row in rows] == [3, 5, 7, 81]  # the answer's bytes and the stop token
    assert len(arrays["input_ids"]) == len(arrays["owner"]) == sum(lengths) == outcome.facts["num_tokens"]
    assert outcome.facts["num_supervised"] == int(arrays["loss_mask"].sum()) == 96
    assert outcome.facts["max_length"] == max(lengths)
    assert outcome.facts["pack_length"] == sum(lengths)  # less than 2,048 in all: one pack, full
    assert (outcome.facts["num_packs"], outcome.facts["packing_efficiency"]) == (1, 1.0)
    assert outcome.facts["stop_ids"] == [257]
    assert (out / "task.json").read_bytes() == inputs["curate"].file("task.json").read_bytes()
    assert (out / "chat_template.jinja").read_text() == __import__(
        "tunesmith.chat.templates"
    ).chat.templates.load_template("chatml")
    progress = [event for event in sink.events if event.type == "progress"]
    assert (progress[-1].done, progress[-1].total, progress[-1].detail["tokens"]) == (4, 4, sum(lengths))


def test_the_same_rows_give_the_same_bytes(tmp_path, inputs, ctx):
    _, first = run(tmp_path, inputs, ctx, "first")
    _, second = run(tmp_path, inputs, ctx, "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["chat_template.jinja", "dropped.jsonl", "rows.jsonl", "samples.safetensors", "task.json"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_overlong_rows_are_dropped_and_counted(tmp_path, inputs, ctx, sink):
    outcome, out = run(tmp_path, inputs, ctx, max_length=60)
    dropped = read_records(out / "dropped.jsonl", Excluded)
    assert outcome.counts["rows"] == outcome.counts["samples"] + outcome.counts["dropped"] == 4
    assert outcome.counts["dropped_overlong"] == 1
    assert [(row.reason, row.where) for row in dropped] == [("overlong", "seeds.jsonl:40")]
    assert dropped[0].conversation == ROWS[3]
    assert outcome.facts["max_length"] == 60
    assert any(event.type == "note" and "1 of 4 rows stay out (overlong)" in event.message for event in sink.events)


def test_overlong_rows_are_an_error_where_the_recipe_says_so(tmp_path, inputs, ctx):
    with pytest.raises(DataError, match=r"seeds.jsonl:40: the row has \d+ tokens, expected at most 60"):
        run(tmp_path, inputs, ctx, max_length=60, overlong="error")


def test_a_given_pack_length_bounds_auto_max_length(tmp_path, inputs, ctx):
    outcome, _ = run(tmp_path, inputs, ctx, pack_length=60)
    assert outcome.facts["pack_length"] == 60
    assert outcome.facts["max_length"] <= 60
    assert outcome.counts["dropped_overlong"] == 1


def test_lengths_that_cannot_go_together_are_recipe_errors(tmp_path, inputs, ctx):
    with pytest.raises(RecipeError, match="reads at most 512 tokens") as caught:
        run(tmp_path, inputs, ctx, "a", max_length=513)
    assert caught.value.where == "recipe.tokenize.max_length"
    with pytest.raises(RecipeError, match="pack_length is 64, less than max_length = 65"):
        run(tmp_path, inputs, ctx, "b", max_length=65, pack_length=64)


def test_nothing_left_is_an_error_that_says_why(tmp_path, inputs, ctx):
    with pytest.raises(DataError, match=r"no training sample is left of 4 rows \(overlong: 4\)"):
        run(tmp_path, inputs, ctx, max_length=5)


def test_an_empty_train_split_is_an_error(tmp_path, model_dir, monkeypatch, ctx):
    with pytest.raises(DataError, match="the train split is empty"):
        run(tmp_path, make_inputs(tmp_path, model_dir, monkeypatch, []), ctx)


def test_a_row_without_an_answer_is_an_error_that_names_it(tmp_path, model_dir, monkeypatch, ctx):
    mute = Conversation(messages=[Message(role="user", content="?")], source="mute.jsonl:7")
    with pytest.raises(DataError, match=r"mute.jsonl:7: no token of this conversation would be a training target"):
        run(tmp_path, make_inputs(tmp_path, model_dir, monkeypatch, [*ROWS, mute]), ctx)


def test_rows_the_template_refuses_stay_out_with_its_words(tmp_path, model_dir, monkeypatch, ctx):
    odd = Conversation(messages=[Message(role="assistant", content="I begin"), *ROWS[0].messages], source="odd.jsonl:1")
    inputs = make_inputs(tmp_path, model_dir, monkeypatch, [*ROWS, odd])
    outcome, out = run(tmp_path, inputs, ctx, chat_template="llama-2")
    (row,) = read_records(out / "dropped.jsonl", Excluded)
    assert (row.reason, row.where) == ("refused_by_template", "odd.jsonl:1")
    assert "found assistant where user should be" in row.detail
    assert outcome.counts["rows"] == outcome.counts["samples"] + outcome.counts["dropped"] == 5


def test_a_template_is_named_or_given_as_a_file(tmp_path, model_dir, monkeypatch, ctx):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role }}={{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant={% endif %}"
    )
    inputs = make_inputs(tmp_path, model_dir, monkeypatch, ROWS, {"mine.jinja": file})
    _, out = run(tmp_path, inputs, ctx, "mine", chat_template="mine.jinja")
    assert (out / "chat_template.jinja").read_text() == file.read_text()
    _, out = run(tmp_path, inputs, ctx, "named", chat_template="zephyr")
    assert "<|assistant|>" in (out / "chat_template.jinja").read_text()
    with pytest.raises(RecipeError, match="no built-in chat template named 'zefyr'"):
        run(tmp_path, inputs, ctx, "typo", chat_template="zefyr")


def test_a_model_without_a_template_asks_for_one(tmp_path, model_dir, monkeypatch, ctx):
    bare = tmp_path / "bare"
    shutil.copytree(model_dir, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match="'bare' has no chat template of its own") as caught:
        run(tmp_path, make_inputs(tmp_path, bare, monkeypatch, ROWS), ctx)
    assert "alpaca, alpaca-lora, alpaca-short, belle, chatml" in str(caught.value.hint)


def test_stripped_thoughts_are_warned_of(tmp_path, inputs, ctx, sink):
    run(tmp_path, inputs, ctx, chat_template="qwen3")
    assert any(event.type == "note" and "rewrites earlier turns" in event.message for event in sink.events)


def test_reasoning_the_template_does_not_write_is_warned_of(tmp_path, model_dir, monkeypatch, ctx, sink):
    answer = Message(role="assistant", content="4", reasoning="2 + 2")
    thoughtful = Conversation(messages=[Message(role="user", content="2 + 2?"), answer])
    inputs = make_inputs(tmp_path, model_dir, monkeypatch, [thoughtful])
    run(tmp_path, inputs, ctx, "chatml")
    assert [event.message for event in sink.events if event.type == "note"] == [
        "1 rows hold reasoning, which this chat template does not write: it is not trained on"
    ]
    sink.events.clear()
    run(tmp_path, inputs, ctx, "qwen3", chat_template="qwen3", supervise="last_turn")
    assert not [event for event in sink.events if event.type == "note"]


def test_a_sample_can_be_looked_up_by_the_beginning_of_its_id(tmp_path, inputs, ctx):
    outcome, out = run(tmp_path, inputs, ctx)
    done = artifact(out, "tokenized", outcome.facts)
    arrays = load_file(out / "samples.safetensors")
    second = load_sample(done, ROWS[1].id[:8])
    start, length = int(arrays["lengths"][0]), int(arrays["lengths"][1])
    assert second.input_ids == tuple(arrays["input_ids"][start : start + length].tolist())
    assert sum(second.loss_mask) == 5
    assert second.owner[-2:] == (1, -1)
    with pytest.raises(DataError, match="no sample has an id that begins with 'zz'"):
        load_sample(done, "zz")


def test_real_chats_are_tokenized_whole(tmp_path, model_dir, monkeypatch, ctx, shared_data):
    rows = json.loads((shared_data / "sharegpt" / "dummy_conversation.json").read_text())
    roles = {"human": "user", "gpt": "assistant"}
    conversations = [
        Conversation(
            messages=[Message(role=roles[turn["from"]], content=turn["value"]) for turn in row["conversations"]]
        )
        for row in rows
    ]
    outcome, out = run(tmp_path, make_inputs(tmp_path, model_dir, monkeypatch, conversations), ctx)
    arrays = load_file(out / "samples.safetensors")
    assert outcome.counts["samples"] + outcome.counts["dropped"] == len(conversations) == 500
    assert outcome.facts["packing_efficiency"] > 0.95
    ends = np.cumsum(arrays["lengths"]) - 1
    assert set(arrays["input_ids"][ends - 1].tolist()) == {257}
    assert arrays["loss_mask"][ends - 1].all()


def classed(question: str, answer: str, weight: float, condition: str) -> Conversation:
    row = conversation(question, answer)
    metadata = {"weights": [0.0, weight], "condition": condition, "source_class": condition}
    return row.model_copy(update={"metadata": metadata})


def test_weights_and_conditions_of_sources_reach_tokens_and_samples(tmp_path, model_dir, monkeypatch, ctx, sink):
    rows = [classed("ab", "cd", 1.0, "GPT4"), classed("ef", "ghi", 0.1, "GPT3"), conversation("jk", "l")]
    tokenize.run(Tokenize(), make_inputs(tmp_path, model_dir, monkeypatch, rows), tmp_path, ctx)
    assert "2 rows have a condition" in str(sink.events)
    arrays = load_file(tmp_path / "samples.safetensors")
    ends = np.cumsum(arrays["lengths"])
    per_sample = [
        {round(weight, 3) for weight in arrays["loss_weights"][start:end][arrays["loss_mask"][start:end] == 1].tolist()}
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert per_sample == [{1.0}, {0.1}, {1.0}]


def test_rows_of_a_class_of_weight_0_are_dropped_and_counted(tmp_path, model_dir, monkeypatch, ctx, sink):
    rows = [classed("ab", "cd", 1.0, "GPT4"), classed("ef", "ghi", 0.0, "GPT3"), conversation("jk", "l")]
    inputs = make_inputs(tmp_path, model_dir, monkeypatch, rows)
    outcome = tokenize.run(Tokenize(), inputs, tmp_path, ctx)
    assert (outcome.counts["rows"], outcome.counts["samples"], outcome.counts["dropped_weightless"]) == (3, 2, 1)
    ids = [json.loads(line)["id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert ids == [rows[0].id, rows[2].id]
    (dropped,) = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert (dropped["reason"], dropped["detail"]) == ("weightless", "its source class 'GPT3' has weight 0")
    assert len(load_samples(tmp_path / "samples.safetensors", ids).lengths) == 2


def test_samples_without_weights_are_stored_without_them(tmp_path, inputs, ctx):
    tokenize.run(Tokenize(), inputs, tmp_path, ctx)
    assert "loss_weights" not in load_file(tmp_path / "samples.safetensors")


def test_the_openchat_template_writes_the_condition_of_a_source():
    from tunesmith.chat.template import ChatTemplate

    template = ChatTemplate(load_template("openchat-3.5"), {"bos_token": "<s>"})
    messages = [Message(role="user", content="Hi"), Message(role="assistant", content="Yo")]
    assert template.render(messages, add_generation_prompt=False).startswith("<s>GPT4 Correct User: Hi<|end_of_turn|>")
    conditioned = [message.model_copy(update={"condition": "GPT3"}) for message in messages]
    text = template.render(conditioned, add_generation_prompt=False)
    assert text == "<s>GPT3 User: Hi<|end_of_turn|>GPT3 Assistant: Yo<|end_of_turn|>"
