"""Stage base_model on a small local model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_models import TEMPLATE, build_model
from tunesmith.errors import ModelError
from tunesmith.hashing import digest_text
from tunesmith.recipe import BaseModelSection
from tunesmith.stages.base_model import run
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
