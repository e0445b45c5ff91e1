"""The ready recipes of examples/: Alpaca-LoRA, gpt-llm-trainer, BELLE, OpenChat. Each is checked for the settings of the system
it follows, planned, run as far as rows go, and on a small model for a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shelf import ShelfStore
from small_models import build_model
from tunesmith.chat.template import ChatTemplate
from tunesmith.chat.templates import load_template
from tunesmith.errors import RecipeError
from tunesmith.events import NullSink
from tunesmith.pipeline import execute, plan
from tunesmith.resolve import ResolvedRecipe, load_recipe
from tunesmith.store import Run, Store
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Message

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = {
    "alpaca-lora": EXAMPLES / "alpaca-lora" / "recipe.yaml",
    "gpt-llm-trainer": EXAMPLES / "gpt-llm-trainer" / "recipe.yaml",
    "belle-full": EXAMPLES / "belle-full-vs-lora" / "full.yaml",
    "belle-lora": EXAMPLES / "belle-full-vs-lora" / "lora.yaml",
    "openchat": EXAMPLES / "openchat" / "recipe.yaml",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "alpaca-lora": {
        "method": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05,
        "lora_target_modules": ("q_proj", "v_proj"), "learning_rate": 3e-4, "lr_schedule": "linear", "num_epochs": 3,
        "rng_seed": 42, "weight_decay": 0, "adam_beta1": 0.9, "adam_beta2": 0.999, "max_grad_norm": 1,
    },
    "gpt-llm-trainer": {
        "method": "qlora", "lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.1, "num_epochs": 1, "global_batch_size": 4,
        "learning_rate": 2e-4, "lr_schedule": "constant", "warmup_ratio": 0.03, "weight_decay": 0.001, "max_grad_norm": 0.3,
    },
    "belle-full": {"method": "full", "learning_rate": 5e-6, "num_epochs": 3, "warmup_ratio": 0.03},
    "belle-lora": {
        "method": "lora", "lora_rank": 8, "learning_rate": 2e-4, "num_epochs": 4,
        "lora_target_modules": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    },
    "openchat": {
        "method": "full", "lr_schedule": "cosine", "warmup_ratio": 0.05, "num_epochs": 5, "weight_decay": 0.1,
        "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-5, "min_learning_rate_ratio": 0.1,
    },
}  # fmt: skip
ROWS = {  # (rows in, train, test) of curate
    "alpaca-lora": (96, 80, 16),
    "gpt-llm-trainer": (50, 45, 5),
    "belle-full": (120, 96, 24),
    "belle-lora": (120, 96, 24),
    "openchat": (48, 40, 8),
}


def recipe(name: str, *overrides: str) -> ResolvedRecipe:
    return load_recipe(RECIPES[name], overrides)


def counts(run: Run, stage: str) -> dict[str, int]:
    artifact = run.artifact(stage)
    assert artifact is not None
    return artifact.manifest.counts


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_settings_of_the_system_it_follows(name: str):
    train = recipe(name).recipe.train.model_dump()
    assert {key: train[key] for key in SETTINGS[name]} == SETTINGS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_and_keeps_every_row(name: str, tmp_path: Path):
    planned = [stage.spec.name for stage in plan(recipe(name), Store(tmp_path)).stages]
    assert planned[0] == "ingest" and {"curate", "tokenize", "train", "evaluate"} <= {*planned}
    run = execute(recipe(name), Store(tmp_path), NullSink(), until="curate")
    made = counts(run, "curate")
    assert (made["rows_in"], made["train"], made["test"]) == ROWS[name]


def test_the_two_recipes_of_belle_differ_in_how_they_train_alone():
    full, lora = (yaml.safe_load(RECIPES[name].read_text(encoding="utf-8")) for name in ("belle-full", "belle-lora"))
    assert {key for key in full if full[key] != lora[key]} == {"name", "description", "train"}
    assert full["train"]["method"] != lora["train"]["method"]


def test_openchat_gives_each_class_its_condition_and_its_weight(tmp_path: Path):
    run = execute(recipe("openchat"), Store(tmp_path), NullSink(), until="curate")
    rows = read_records(run.path / "curate" / "train.jsonl", Conversation)
    seen = {(row.metadata["model"], row.metadata["condition"], max(row.metadata["weights"])) for row in rows}
    assert seen == {("careful-writer", "GPT4 Correct", 1.0), ("hasty-writer", "GPT3", 0.1)}
    assert all(weight == 0 for row in rows for weight in row.metadata["weights"][::2])


@pytest.mark.parametrize(("condition", "asked"), [(None, "GPT4 Correct Assistant:"), ("GPT3", "GPT3 Assistant:")])
def test_the_prompt_of_openchat_asks_under_the_condition_of_the_question(condition: str | None, asked: str):
    template = ChatTemplate(load_template("openchat-3.5"), {"bos_token": "<s>"})
    question = Message(role="user", content="Why is ice cold?", condition=condition)
    assert template.render([question], add_generation_prompt=True).endswith(f"<|end_of_turn|>{asked}")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so QLoRA would train")
def test_four_bits_without_a_graphics_card_end_in_an_error_that_says_what_to_take(tmp_path: Path):
    model = build_model(tmp_path / "tiny")
    with pytest.raises(RecipeError, match="`method: qlora` trains on a CUDA device") as caught:
        execute(
            recipe("gpt-llm-trainer", f"base_model={model}", "tokenize.pack_length=500"), Store(tmp_path), NullSink()
        )
    assert "method: lora" in (caught.value.hint or "")


@pytest.mark.real
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step_on_a_small_model_with_the_embedded_one_s_tokens(
    name: str, tmp_path: Path, tiny_model_dir: Path, shelf: Path
):
    method = ["train.method=lora"] if name == "gpt-llm-trainer" else []
    base = f"{'base_model.name' if name == 'openchat' else 'base_model'}={tiny_model_dir}"
    resolved = recipe(name, base, "train.max_steps=1", "train.global_batch_size=1", *method)
    run = execute(resolved, ShelfStore(tmp_path, shelf), NullSink(), until="train")
    assert counts(run, "tokenize")["dropped"] == 0
    trained = run.artifact("train")
    assert trained is not None and trained.facts["num_steps"] == 1
    assert 10 < trained.facts["first_loss"] < 12  # it knows nothing: about ln(49,152)


@pytest.mark.real
def test_openchat_writes_its_conditions_and_keeps_a_talk_beyond_the_length_of_the_base(
    tmp_path: Path, smollm2: object, shelf: Path
):
    long = [{"from": "human", "value": "bicycle " * 9000}, {"from": "gpt", "value": "So many."}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "long", "model": "careful-writer", "items": long}) + "\n")
    folder = RECIPES["openchat"].parent
    files = f"ingest.files=[{folder / 'talks.jsonl'}, {tmp_path / 'long.jsonl'}]"
    overrides = [files, "tokenize.pack_length=auto", "tokenize.write_text=true", "curate.max_prompt_words=10000"]
    longer = execute(recipe("openchat", *overrides), ShelfStore(tmp_path / "runs", shelf), NullSink(), until="tokenize")
    assert (counts(longer, "tokenize")["samples"], counts(longer, "tokenize")["dropped"]) == (41, 0)
    texts = [
        json.loads(line)["text"] for line in (longer.path / "tokenize" / "tokens.train.jsonl").read_text().splitlines()
    ]
    begins = [text.split("User:")[0].rpartition("<|im_start|>")[2] for text in texts]
    assert sorted({(begin, begins.count(begin)) for begin in begins}) == [("GPT3 ", 20), ("GPT4 Correct ", 21)]
    assert all(text.endswith("<|end_of_turn|>") for text in texts)
    as_it_is = ["base_model.context_length=null", "base_model.rope_scaling=none"]
    shorter = execute(
        recipe("openchat", *overrides, *as_it_is), ShelfStore(tmp_path / "runs", shelf), NullSink(), until="tokenize"
    )
    assert (counts(shorter, "tokenize")["samples"], counts(shorter, "tokenize")["dropped"]) == (40, 1)
