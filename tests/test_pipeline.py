"""Plan and execute: content keys, early stop of unchanged output, resume, events. Stages here are small fakes."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from tunesmith import pipeline
from tunesmith.errors import EXTRAS, DataError, MissingExtra, RecipeError
from tunesmith.events import NullSink, StageFailed, StageFinished, StageStarted, read_events
from tunesmith.resolve import ResolvedRecipe, resolve_mapping
from tunesmith.store import Store
from tunesmith.types import Outcome

NAMES = ("ingest", "curate", "base_model")


class FakeStages:
    """Counts runs; curate uppercases what ingest read, so a change of case upstream does not reach the model."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail_in: str | None = None

    def ingest(self, section, inputs, out_dir, ctx):
        self._note("ingest")
        text = "".join(path.read_text() for path in inputs.files.values())
        (out_dir / "rows").write_text(text)
        return Outcome("conversations", {"rows": len(text)}, {})

    def curate(self, section, inputs, out_dir, ctx):
        (out_dir / "leftover").touch()
        self._note("curate")
        (out_dir / "rows").write_text(inputs["ingest"].file("rows").read_text().upper())
        return Outcome("curated", {}, {})

    def base_model(self, section, inputs, out_dir, ctx):
        self._note("base_model")
        (out_dir / "out").write_text(section.name)
        return Outcome("base_model", {}, {})

    def _note(self, name: str) -> None:
        self.ran.append(name)
        if self.fail_in == name:
            raise DataError("broken row", where="a.jsonl:3", hint="mend it")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fake = FakeStages()
    table = (
        pipeline.StageSpec("ingest", 1),
        pipeline.StageSpec("curate", 1, needs=("ingest",), uses=("generate",)),
        pipeline.StageSpec("base_model", 1, needs=("curate",)),
    )
    monkeypatch.setattr(pipeline, "STAGES", table)
    for name in NAMES:
        module = types.ModuleType(f"tunesmith.stages.{name}")
        module.run = getattr(fake, name)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"tunesmith.stages.{name}", module)
    return fake


def recipe(tmp_path: Path, **changes: object) -> ResolvedRecipe:
    return resolve_mapping(
        {"name": "desk", "base_model": "some/model", "ingest": {"files": ["a.txt"]}, **changes}, folder=tmp_path
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "a.txt").write_text("hello")
    return Store(tmp_path / "runs")


def test_a_second_run_of_the_same_recipe_runs_nothing(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    first = pipeline.execute(recipe(tmp_path), store, NullSink())
    second = pipeline.execute(recipe(tmp_path), store, NullSink())
    assert fake.ran == list(NAMES)
    assert first.artifacts().keys() == second.artifacts().keys() == set(NAMES)
    assert (second.path / "curate" / "rows").read_text() == "HELLO"
    cached = [event.cached for event in read_events(second.events_path) if isinstance(event, StageFinished)]
    assert cached == [True, True, True]


def test_a_change_that_ends_in_the_same_output_stops_there(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    pipeline.execute(recipe(tmp_path), store, NullSink())
    (tmp_path / "a.txt").write_text("Hello")
    pipeline.execute(recipe(tmp_path), store, NullSink())
    assert fake.ran == [*NAMES, "ingest", "curate"]


def test_the_runtime_section_is_in_no_key(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    pipeline.execute(recipe(tmp_path), store, NullSink())
    pipeline.execute(recipe(tmp_path, runtime={"num_threads": 1, "precision": "fp32"}), store, NullSink())
    assert fake.ran == list(NAMES)


def test_a_section_is_in_the_key_of_its_own_stage_and_moving_the_folder_is_not(
    tmp_path: Path, store: Store, fake: FakeStages
) -> None:
    pipeline.execute(recipe(tmp_path), store, NullSink())
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("hello")
    pipeline.execute(recipe(elsewhere), store, NullSink())
    assert fake.ran == list(NAMES)
    pipeline.execute(recipe(tmp_path, curate={"min_prompt_words": 2}), store, NullSink())
    assert fake.ran == [*NAMES, "curate"]


def test_a_failed_stage_is_recorded_and_continued_in_its_partial_folder(
    tmp_path: Path, store: Store, fake: FakeStages
) -> None:
    fake.fail_in = "curate"
    with pytest.raises(DataError):
        pipeline.execute(recipe(tmp_path), store, NullSink())
    states = {stage.spec.name: stage.status for stage in pipeline.plan(recipe(tmp_path), store).stages}
    assert states == {"ingest": "cached", "curate": "resume", "base_model": "run"}
    fake.fail_in = None
    run = pipeline.execute(recipe(tmp_path), store, NullSink())
    assert run.name == "desk-001"
    events = read_events(run.events_path)
    failure = next(event for event in events if isinstance(event, StageFailed))
    assert (failure.stage, failure.where, failure.hint) == ("curate", "a.jsonl:3", "mend it")
    assert [event.resumed for event in events if isinstance(event, StageStarted) and event.stage == "curate"] == [
        False,
        True,
    ]
    assert run.info["status"] == "finished"


def test_planning_changes_nothing_and_knows_no_key_below_an_unmade_stage(
    tmp_path: Path, store: Store, fake: FakeStages
) -> None:
    planned = pipeline.plan(recipe(tmp_path), store)
    assert fake.ran == []
    assert not store.root.exists()
    assert [stage["key"] is None for stage in planned.as_json()] == [False, True, True]


def test_a_damaged_artifact_is_set_aside_and_built_anew(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    run = pipeline.execute(recipe(tmp_path), store, NullSink())
    (run.path / "ingest" / "rows").write_text("hellO")
    again = pipeline.execute(recipe(tmp_path), store, NullSink())
    assert fake.ran == [*NAMES, "ingest"]
    assert (again.path / "ingest" / "rows").read_text() == "hello"
    assert len(list((store.root / "damaged").iterdir())) == 1


def test_a_file_that_is_not_there_names_what_is(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    with pytest.raises(RecipeError) as caught:
        pipeline.execute(recipe(tmp_path, ingest={"files": ["b.txt"]}), store, NullSink())
    assert "b.txt" in str(caught.value)
    assert "a.txt" in str(caught.value.hint)


def test_a_torn_last_event_is_left_out(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    run = pipeline.execute(recipe(tmp_path), store, NullSink())
    whole = len(read_events(run.events_path))
    with run.events_path.open("ab") as stream:
        stream.write(b'{"type":"note","mess')
    assert len(read_events(run.events_path)) == whole


def test_a_torn_event_is_cut_before_more_are_written(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    fake.fail_in = "curate"
    with pytest.raises(DataError):
        pipeline.execute(recipe(tmp_path), store, NullSink())
    events = store.root / "desk-001" / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-20])
    before = len(read_events(events))
    fake.fail_in = None
    run = pipeline.execute(recipe(tmp_path), store, NullSink())
    assert run.name == "desk-001"
    after = read_events(events)
    assert len(after) > before and after[-1].type == "run_finished"


def test_a_missing_package_is_said_before_the_first_stage(
    tmp_path: Path, store: Store, fake: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = (*pipeline.STAGES[:2], pipeline.StageSpec("base_model", 1, needs=("curate",), packages=("gguf",)))
    monkeypatch.setattr(pipeline, "STAGES", table)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="the stage `base_model` needs the package 'gguf'") as caught:
        pipeline.execute(recipe(tmp_path), store, NullSink())
    assert "tunesmith[train]" in str(caught.value.hint)
    assert fake.ran == []


def test_every_package_a_stage_needs_belongs_to_an_extra() -> None:
    assert {package for spec in pipeline.STAGES for package in spec.packages} <= set(EXTRAS)


@pytest.mark.parametrize("name", ["", "."])
def test_the_recipes_own_folder_is_no_data_file(tmp_path: Path, store: Store, fake: FakeStages, name: str) -> None:
    with pytest.raises(RecipeError, match="the recipe's own folder"):
        pipeline.execute(recipe(tmp_path, ingest={"files": [name]}), store, NullSink())


def test_a_pipe_is_no_data_file(tmp_path: Path, store: Store, fake: FakeStages) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="no regular file"):
        pipeline.plan(recipe(tmp_path, ingest={"files": ["pipe"]}), store)
