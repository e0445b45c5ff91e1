"""Stage base_model on a small local model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_models import TEMPLATE, build_model
from tunesmith.errors import ModelError, RecipeError
from tunesmith.hashing import digest_text
from tunesmith.model.catalog import base_model_path
from tunesmith.recipe import BaseModelSection
from tunesmith.resolve import resolve_mapping
from tunesmith.stages.base_model import run
from tunesmith.store import Identity, Store
from tunesmith.types import Inputs

NOTHING = Inputs({}, {})


def test_the_artifact_says_what_later_stages_need_and_where_the_weights_are(tmp_path, ctx):
    folder = build_model(tmp_path / "mine")
    (tmp_path / "out").mkdir()
    outcome = run(BaseModelSection(name=str(folder)), NOTHING, tmp_path / "out", ctx)
    assert outcome.kind == "base_model"
    facts = outcome.facts
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["context_length"] == 512
    assert facts["source"] == "folder"
    assert facts["template_digest"] == digest_text(TEMPLATE)
    assert outcome.counts == {"num_parameters": facts["num_parameters"]}
    assert json.loads((tmp_path / "out" / "model.json").read_bytes()) == facts
    assert json.loads((tmp_path / "out" / "logs" / "location.json").read_bytes())["path"] == str(folder)


def test_a_model_without_a_template_is_taken_with_a_warning(tmp_path, ctx, sink):
    folder = build_model(tmp_path / "mine")
    (folder / "chat_template.jinja").unlink()
    outcome = run(BaseModelSection(name=str(folder)), NOTHING, tmp_path, ctx)
    assert outcome.facts["template_digest"] is None
    assert "tokenize.chat_template can name another" in sink.events[-1].message


def test_equal_weights_give_equal_files_wherever_they_lie(tmp_path, ctx, monkeypatch):
    written = []
    for place in ("a", "b"):
        (tmp_path / place / "out").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        build_model(Path("mine"))
        run(BaseModelSection(name="./mine"), NOTHING, tmp_path / place / "out", ctx)
        written.append((tmp_path / place / "out" / "model.json").read_bytes())
    assert written[0] == written[1]


def test_a_model_that_is_not_there_is_an_error(tmp_path, ctx):
    with pytest.raises(ModelError, match="there is no such model folder"):
        run(BaseModelSection(name="./nowhere"), NOTHING, tmp_path, ctx)


def test_longer_context_and_a_new_token_make_a_model_inside_the_artifact(tmp_path, ctx, sink):
    folder = build_model(tmp_path / "mine")
    (tmp_path / "plain").mkdir()
    plain = run(BaseModelSection(name=str(folder)), NOTHING, tmp_path / "plain", ctx).facts
    section = BaseModelSection(
        name=str(folder), context_length=1024, rope_scaling="yarn", add_tokens=("<|end_of_turn|>",)
    )
    identity, store = Identity("base_model", 1, section.model_dump(mode="json"), {}), Store(tmp_path / "runs")
    out = store.partial_dir(identity)
    (tmp_path / "runs" / "artifacts").mkdir(parents=True)
    (out / "model").mkdir(parents=True)
    (out / "model" / "half").write_text("left by an interrupted run")
    outcome = run(section, NOTHING, out, ctx)
    artifact = store.commit(identity, outcome, 0.0)
    facts = artifact.facts
    assert (facts["context_length"], facts["original_context_length"]) == (1024, 512)
    assert facts["new_tokens"] == ["<|end_of_turn|>"]
    assert facts["num_parameters"] == plain["num_parameters"] + 64  # one row, tied
    assert facts["weights_digest"] != facts["original_weights_digest"] == plain["weights_digest"]
    assert facts["template_digest"] == plain["template_digest"]
    found = base_model_path(artifact)
    assert found == artifact.path / "model"
    assert json.loads((found / "config.json").read_bytes())["rope_parameters"]["rope_type"] == "yarn"
    assert not (found / "half").exists()
    said = next(event.message for event in sink.events if "extended" in getattr(event, "message", ""))
    assert "it reads 1,024 tokens, 512 before (yarn), <|end_of_turn|> is token 400" in said


def test_without_these_fields_the_artifact_is_what_it_was(tmp_path, ctx):
    folder = build_model(tmp_path / "mine")
    outcome = run(BaseModelSection(name=str(folder)), NOTHING, tmp_path, ctx)
    assert [path.name for path in sorted(tmp_path.iterdir()) if path != folder] == ["logs", "model.json"]
    assert list(outcome.facts) == [
        "name", "source", "revision", "weights_digest", "licence", "num_parameters", "architecture", "context_length",
        "template_digest",
    ]  # fmt: skip


def test_a_length_without_a_method_is_an_error_of_the_recipe(tmp_path, ctx):
    folder = build_model(tmp_path / "mine")
    with pytest.raises(RecipeError, match="reads 512 tokens, not 4,096") as error:
        run(BaseModelSection(name=str(folder), context_length=4096), NOTHING, tmp_path, ctx)
    assert error.value.where == "recipe.base_model.context_length"


def test_a_method_without_a_length_is_an_error_before_anything_is_fetched(tmp_path):
    data = {"name": "x", "base_model": {"name": "./nowhere", "rope_scaling": "yarn"}, "ingest": {"files": ["a.jsonl"]}}
    with pytest.raises(RecipeError, match="`rope_scaling: yarn` reaches a length: add `context_length`"):
        resolve_mapping(data, folder=tmp_path)


@pytest.mark.parametrize("train", [{"method": "lora"}, {"method": "full", "train_embeddings": False}])
def test_new_tokens_whose_rows_would_never_be_learnt_are_an_error_of_the_recipe(train, tmp_path):
    base_model = {"name": "./nowhere", "add_tokens": ["<|end_of_turn|>"]}
    data = {"name": "x", "base_model": base_model, "ingest": {"files": ["a.jsonl"]}, "train": train}
    with pytest.raises(RecipeError, match="the model could never write such a token"):
        resolve_mapping(data, folder=tmp_path)
    resolve_mapping({**data, "train": {"method": "full"}}, folder=tmp_path)
