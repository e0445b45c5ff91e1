"""The few lines of Python: data in, training, typed answers, another model in one line; bad calls are explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

import tunesmith
from english_words import WORDS
from tunesmith import api
from tunesmith.errors import DataError, EngineError, RecipeError, TunesmithError
from tunesmith.events import Note

ROWS = [
    {"question": f"{a} or {b}?", "response": f"{a} {i}"}
    for i, (a, b) in enumerate(zip(WORDS[:16], reversed(WORDS[:16]), strict=True))
]
SMALL = {
    "curate": {"max_similarity": 1},
    "tokenize": {"pack_length": 128},
    "evaluate": {"max_tokens": 8},
    "export": {"formats": ["gguf-f16"], "num_check_prompts": 2},
    "runtime": {"precision": "fp32"},
}


class Ticket(BaseModel):
    intent: Literal["repair", "refund"]
    urgent: bool


def test_examples_come_in_every_usual_form_and_the_digest_depends_on_content(tmp_path: Path) -> None:
    engine = tunesmith.Engine("nothing-yet", root=tmp_path)
    first = engine.add_data(ROWS)
    assert engine.add_data(["hello", "hi"]) != first
    assert engine.add_data([("fix my bike", Ticket(intent="repair", urgent=True))])
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n")
    assert engine.add_data(file)
    assert engine.clear_data() == len(ROWS) + 3
    assert engine.add_data(ROWS) == first


@pytest.mark.parametrize("data", [7, [7], [["a", "b", "c"]], "no-such-file.jsonl"])
def test_what_is_no_example_is_refused(tmp_path: Path, data: object) -> None:
    with pytest.raises(DataError):
        tunesmith.Engine(root=tmp_path).add_data(data)


def test_too_few_examples_are_refused_before_anything_runs(tmp_path: Path) -> None:
    engine = tunesmith.Engine(root=tmp_path)
    engine.add_data(ROWS[:3])
    with pytest.raises(DataError, match="3 examples are too few"):
        engine.train()
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_training_parameter_names_the_right_one(tmp_path: Path) -> None:
    engine = tunesmith.Engine(root=tmp_path)
    engine.add_data(ROWS)
    with pytest.raises(RecipeError) as caught:
        engine.train(lora_r=4)
    assert "train.lora_rank" in str(caught.value.hint)


def test_a_wrong_sampling_parameter_names_the_nearest(tmp_path: Path) -> None:
    engine = tunesmith.Engine(root=tmp_path)
    with pytest.raises(RecipeError, match="no parameter `max_token`") as caught:
        engine("hello", max_token=6)
    assert "max_tokens" in str(caught.value.hint)
    with pytest.raises(RecipeError, match="temperature"):
        engine("hello", temperature=-1)


def test_a_typed_answer_has_no_room_for_keys_the_type_does_not_name() -> None:
    class Part(BaseModel):
        name: str

    class Whole(BaseModel):
        parts: list[Part]
        extra: dict[str, int] = {}

    schema = api._closed(Whole.model_json_schema())
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Part"]["additionalProperties"] is False
    assert schema["properties"]["extra"]["additionalProperties"] == {"type": "integer"}


def test_warnings_of_a_run_reach_those_who_gave_no_sink(tmp_path: Path) -> None:
    engine = tunesmith.Engine(root=tmp_path)
    with pytest.warns(UserWarning, match="2 rows stay out"):
        engine.events.emit(Note(level="warning", message="2 rows stay out"))


def test_a_condition_that_no_template_writes_is_refused_before_training(tmp_path: Path, base_dir: Path) -> None:
    engine = tunesmith.Engine(str(base_dir), root=tmp_path / "runs", condition="GPT3")
    engine.add_data(ROWS)
    with pytest.raises(RecipeError, match="writes no condition") as caught:
        engine.train(recipe=SMALL)
    assert caught.value.where == "recipe.evaluate.condition"
    assert not list((tmp_path / "runs").glob("engine-*"))


def test_calls_are_asked_under_the_condition_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    async def open_nothing(*given: object) -> None:
        opened.append(given[-1])
        raise EngineError("nothing to open")

    monkeypatch.setattr("tunesmith.server.answering.open_answerer", open_nothing)
    with tunesmith.Engine("any", root=tmp_path, condition="GPT3") as engine:
        with pytest.raises(EngineError, match="nothing to open"):
            engine("hello")
        engine.use_endpoint("any", "http://127.0.0.1:9/v1")
        with pytest.raises(RecipeError, match="endpoint's model is asked without a condition"):
            engine("hello")
    assert opened == ["GPT3"]


@pytest.mark.real
def test_train_call_typed_call_and_switch(tmp_path: Path, tiny_model_dir: Path, smollm2) -> None:
    with tunesmith.Engine(str(tiny_model_dir), name="small", root=tmp_path, system_prompt="Answer.") as engine:
        engine.add_data(ROWS)
        scores = engine.train(num_epochs=1, lora_rank=2, recipe=SMALL)
        assert scores["tuned"]["loss"]["n"] == scores["base"]["loss"]["n"] > 0
        assert (tmp_path / "small-001" / "events.jsonl").is_file()
        answer = engine("amber or birch?", max_tokens=6)
        assert isinstance(answer, str)
        assert engine("amber or birch?", max_tokens=6) == answer
        assert engine(["amber or birch?", "x"], max_tokens=6)[0] == answer
        ticket = engine("my brakes failed", Ticket, max_tokens=60)
        assert ticket.intent in ("repair", "refund")
        with pytest.raises(EngineError, match="no Ticket"):
            engine("my brakes failed", Ticket, max_tokens=2)
        engine.condition = "GPT3"
        engine.model = str(smollm2.gguf)
        with pytest.raises(RecipeError, match="writes no condition") as caught:
            engine("What is 2+2?")
        assert caught.value.where == "condition"
        engine.condition = None
        assert "4" in engine("What is 2+2?", max_tokens=24)
        engine.model = "no-such-model"
        with pytest.raises(TunesmithError):
            engine("hello")
