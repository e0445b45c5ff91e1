"""What is read of a run: curves, progress and notes, a piece at a time, through kills and half lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_runs import START, append, beginning, new_run, step, steps, warning

from tunesmith.events import Metric, Progress, RunFinished, StageFailed, StageFinished, StageStarted
from tunesmith.store import Identity, Run, Store
from tunesmith.studio.curves import RunFollower, Series
from tunesmith.types import Outcome


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = new_run(tmp_path)
    append(made, beginning(made))
    return made


def test_curves_have_every_step_with_the_seconds_the_stage_has_worked(run: Run) -> None:
    append(run, steps(range(1, 4), START))
    follower = RunFollower(run)
    assert follower.update()
    series = follower.stages["train"].metrics["loss"]
    assert (series.steps, series.values) == ([1, 2, 3], [4.0, 2.0, pytest.approx(4 / 3)])
    assert series.seconds == [2.0, 4.0, 6.0]
    assert list(follower.stages["train"].metrics) == ["loss", "grad_norm", "learning_rate", "tokens_per_second"]


def test_new_lines_are_taken_in_and_a_half_line_waits_for_its_end(run: Run) -> None:
    follower = RunFollower(run)
    assert follower.update() and not follower.update()
    append(run, steps([1], START))
    assert follower.update()
    line = step(2, START + 4)[0].model_dump_json().encode() + b"\n"
    with run.events_path.open("ab") as stream:
        stream.write(line[:40])
        stream.flush()
        assert not follower.update()
        stream.write(line[40:])
    assert follower.update() and follower.stages["train"].metrics["loss"].steps == [1, 2]


def test_steps_done_again_after_a_kill_replace_the_first_ones_and_the_pause_does_not_count(run: Run) -> None:
    append(run, steps(range(1, 6), START))
    append(run, [StageStarted(time=START + 5000, stage="train", key="k", resumed=True)])
    append(run, steps([4, 5, 6], START + 5000))
    follower = RunFollower(run)
    follower.update()
    series = follower.stages["train"].metrics["loss"]
    assert series.steps == [1, 2, 3, 4, 5, 6]
    assert series.seconds == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_metrics_that_count_steps_otherwise_leave_the_clock_alone(run: Run) -> None:
    """Rewards are measured before a step, losses after it."""
    for number in (1, 2, 3):
        reward = Metric(time=START + 3 * number, stage="train", step=number - 1, values={"reward": 0.1})
        append(run, [reward, *step(number, START + 3 * number + 1)])
    follower = RunFollower(run)
    follower.update()
    metrics = follower.stages["train"].metrics
    assert metrics["reward"].steps == [0, 1, 2] and metrics["reward"].seconds == [3.0, 6.0, 9.0]
    assert metrics["loss"].steps == [1, 2, 3] and metrics["loss"].seconds == [4.0, 7.0, 10.0]


def test_the_eta_is_that_of_this_process(run: Run) -> None:
    append(run, [Progress(time=START, stage="train", task="train", done=0, total=10)])
    append(run, steps(range(1, 5), START))
    append(run, [StageStarted(time=START + 9000, stage="train", key="k", resumed=True)])
    append(run, [Progress(time=START + 9000, stage="train", task="train", done=4, total=10, unit="steps")])
    append(run, steps([5, 6], START + 9000))
    follower = RunFollower(run)
    follower.update()
    assert follower.stages["train"].eta_seconds() == pytest.approx(4 * 2.0)


def test_each_task_of_a_stage_has_its_own_eta(run: Run) -> None:
    def told(task: str, time: float, done: float) -> Progress:
        return Progress(time=START + time, stage="evaluate", task=task, done=done, total=100)

    append(run, [StageStarted(time=START, stage="evaluate", key="k")])
    append(run, [told("base: loss", 0, 0), told("base: loss", 10, 100), told("base: answers", 20, 10)])
    follower = RunFollower(run)
    follower.update()
    assert follower.stages["evaluate"].eta_seconds() is None
    append(run, [told("base: answers", 30, 20)])
    follower.update()
    assert follower.stages["evaluate"].eta_seconds() == pytest.approx(80.0)


def test_stages_and_the_run_end_as_they_ended(run: Run) -> None:
    append(run, [StageFailed(time=START + 1, stage="train", message="the loss is nan")])
    run.update(status="failed")
    follower = RunFollower(run)
    follower.update()
    data = follower.as_json(100)
    assert data["status"] == "failed"
    assert [(stage["name"], stage["status"]) for stage in data["stages"]] == [
        ("curate", "cached"), ("train", "failed"), ("evaluate", "waiting"),
    ]  # fmt: skip
    assert data["notes"][-1] == {
        "time": START + 1,
        "stage": "train",
        "level": "error",
        "message": "the loss is nan",
    }
    append(run, [StageFinished(time=START, stage="train", key="k", counts={}, seconds=7.5), RunFinished(seconds=9)])
    run.update(status="finished")
    assert follower.update()
    assert follower.as_json(100)["stages"][1]["seconds"] == 7.5 and follower.status == "finished"


def test_a_line_that_is_none_of_ours_is_passed_over(run: Run) -> None:
    with run.events_path.open("ab") as stream:
        stream.write(b'not json\n{"type": "metric"}\n[1]\n{"type": "of_tomorrow", "time": 1, "stage": "train"}\n')
    append(run, steps([1], START))
    follower = RunFollower(run)
    follower.update()
    assert follower.stages["train"].metrics["loss"].steps == [1]


def test_a_line_with_other_fields_than_ours_ends_no_watching(run: Run) -> None:
    lines = [
        {"type": "stage_finished", "stage": "train"},
        {"type": "progress", "stage": "train", "task": "train", "done": "many", "total": [1]},
        {"type": "progress", "stage": "train", "task": "train", "done": 1, "total": "all"},
        {"type": "metric", "stage": "train", "step": None, "values": {"loss": 1}},
        {"type": "metric", "stage": "train", "step": 1, "values": ["loss"]},
        {"type": "metric", "stage": "train", "step": 1},
        {"type": "note"},
        {"type": "run_started", "stages": 7},
        {"type": ["metric"], "stage": {"a": 1}},
    ]
    with run.events_path.open("ab") as stream:
        for line in lines:
            stream.write(json.dumps({"time": START, **line}).encode() + b"\n")
        stream.write(
            b'{"type": "metric", "time": 1, "stage": "train", "step": 1, "values": {"loss": 1e999}}\n\xff\xfe\n'
        )
    append(run, steps([1], START))
    follower = RunFollower(run)
    follower.update()
    assert follower.stages["train"].metrics["loss"].values == [4.0]
    json.dumps(follower.as_json(100), allow_nan=False)


def test_a_longer_run_that_took_the_place_of_a_deleted_one_is_read_from_its_beginning(run: Run) -> None:
    append(run, steps([1], START))
    follower = RunFollower(run)
    follower.update()
    run.events_path.rename(run.events_path.with_name("old.jsonl"))
    assert not follower.update(), "deleted: what was read stays"
    append(run, [*beginning(run), *steps(range(3, 9), START)])
    assert follower.update() and follower.stages["train"].metrics["loss"].steps == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("timed", [True, False])
def test_a_stage_another_run_did_shows_its_curves_by_the_time_its_steps_took(tmp_path: Path, timed: bool) -> None:
    run = new_run(tmp_path)
    store, identity = Store(tmp_path), Identity("train", 1, {}, {})
    folder = store.partial_dir(identity)
    (folder / "logs").mkdir(parents=True)
    again = (1, 2, 3, 2, 3)  # the last two after a kill
    rows: list[dict[str, float]] = [
        {"step": number, "loss": 1 / number, "peak_memory_bytes": 10**9} for number in again
    ]
    for row in rows:
        row |= {"seconds": 2.5} if timed else {}
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.link("train", store.commit(identity, Outcome("checkpoint", {}, {}), 1.0))
    append(run, beginning(run)[:2])
    append(run, [StageFinished(time=START, stage="train", key="k", counts={}, seconds=0, cached=True)])
    follower = RunFollower(run)
    follower.update()
    metrics = follower.stages["train"].metrics
    assert list(metrics) == ["loss"] and metrics["loss"].steps == [1, 2, 3]
    assert metrics["loss"].seconds == ([2.5, 5.0, 7.5] if timed else [None] * 3)


def test_a_run_that_was_begun_anew_is_read_anew(run: Run) -> None:
    append(run, steps(range(1, 5), START))
    follower = RunFollower(run)
    follower.update()
    run.events_path.write_bytes(b"")
    append(run, beginning(run))
    assert follower.update() and follower.stages["train"].metrics == {}


def test_a_long_curve_keeps_its_range_where_points_come_together() -> None:
    series = Series()
    for number in range(1, 10_001):
        series.add(number, number / 10, 100.0 if number == 5_000 else math.nan if number == 7 else 1.0)
    thinned = series.as_json(1_000)
    assert len(thinned["steps"]) == 1_000 and thinned["steps"][-1] == 10_000 and thinned["seconds"][-1] == 1000.0
    assert max(thinned["high"]) == 100.0 and max(thinned["values"]) == 10.9 and thinned["low"][0] == 1.0
    assert "low" not in series.as_json(10_000)


def test_notes_keep_their_level_and_the_oldest_go_first(run: Run) -> None:
    append(run, [warning(f"number {number}") for number in range(100)])
    follower = RunFollower(run)
    follower.update()
    notes = follower.as_json(10)["notes"]
    assert len(notes) == 60 and notes[-1]["message"] == "number 99" and notes[0]["level"] == "warning"
