"""Stages prefer and align on a tiny model, by every loss: a checkpoint of the same form, rows that add up, resuming."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tiny_runs import POLICY, WORDS, TinyRun, lines, write_lines, write_reward

from tunesmith.errors import DataError, RecipeError, TrainingError
from tunesmith.events import Metric, Note, Progress
from tunesmith.model.load import load_checkpoint
from tunesmith.recipe.align import Align
from tunesmith.stages.answers import render_answers
from tunesmith.store import Run
from tunesmith.types import Inputs, Message

pytestmark = pytest.mark.slow


def weights(run: Run, stage: str, base_dir: Path) -> dict[str, torch.Tensor]:
    model = load_checkpoint(run.artifacts()[stage], base_dir, device="cpu", dtype=torch.float32)
    return {name: value for name, value in model.named_parameters() if "lora" in name}


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo", "kto"])
def test_comparisons_move_the_checkpoint_and_every_row_is_counted(start: TinyRun, base_dir: Path, loss: str) -> None:
    run = start(f"align: {{loss: {loss}, num_epochs: 2, learning_rate: 1.0e-3}}")
    aligned = run.artifacts()["align"]
    counts = aligned.manifest.counts
    assert counts["rows"] == counts["used"] + counts["dropped"]
    if loss == "kto":
        assert (counts["used"], counts["dropped_overlong"]) == (2 * len(WORDS), 2)
    else:
        assert (counts["used"], counts["dropped_overlong"]) == (len(WORDS), 1)
        assert lines(aligned.file("dropped.jsonl"))[0]["reason"] == "overlong"
    assert aligned.facts["method"] == "lora" and aligned.facts["loss"] == loss
    before, after = weights(run, "train", base_dir), weights(run, "align", base_dir)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_reference_is_computed_once_for_all_runs_of_a_root(start: TinyRun, sink: Any) -> None:
    start("align: {loss: dpo, max_steps: 1}")
    again = len(sink.events)
    start("align: {loss: ipo, beta: 0.3, max_steps: 1}")
    told = [event for event in sink.events[again:] if isinstance(event, Progress) and event.task == "reference"]
    assert [event.done for event in told] == [2 * len(WORDS)]


def test_a_second_run_waits_for_the_reference_of_the_first_and_uses_it(start: TinyRun, tmp_path: Path) -> None:
    start("align: {loss: dpo, max_steps: 1}")
    (ledger,) = (tmp_path / "root" / "ledgers" / "reference").glob("*.jsonl")
    lock, told = FileLock(ledger.with_suffix(".lock"), thread_local=False), list[Any]()

    class LetGo:
        def emit(self, event: Any) -> None:
            told.append(event)
            if isinstance(event, Note) and "another run asks the same reference" in event.message:
                lock.release()

    lock.acquire()
    start("align: {loss: ipo, max_steps: 1}", events=LetGo())
    assert any(isinstance(event, Note) and "another run asks" in event.message for event in told)
    progress = [event.done for event in told if isinstance(event, Progress) and event.task == "reference"]
    assert progress == [2 * len(WORDS)]


def test_aligning_goes_on_where_it_was_stopped(start: TinyRun, base_dir: Path) -> None:
    class Stop:
        def __init__(self) -> None:
            self.steps = 0

        def emit(self, event: Any) -> None:
            if isinstance(event, Metric) and event.values.get("margin") is not None:
                self.steps += 1
                if self.steps == 2:
                    raise KeyboardInterrupt

    section = "align: {loss: dpo, num_epochs: 3, learning_rate: 1.0e-3}"
    with pytest.raises(KeyboardInterrupt):
        start(section, events=Stop())
    resumed = start(section)
    losses = lines(resumed.artifacts()["align"].file("losses.jsonl"))
    assert [row["step"] for row in losses] == list(range(1, len(losses) + 1)) and len(losses) >= 3
    other = start(section.replace("}", ", beta: 0.1000001}"))
    assert losses[-1]["loss"] == pytest.approx(
        lines(other.artifacts()["align"].file("losses.jsonl"))[-1]["loss"], rel=1e-3
    )


@pytest.mark.parametrize("loss", ["grpo", "rloo", "ppo"])
def test_rewards_of_sampled_answers_move_the_checkpoint(
    start: TinyRun, tmp_path: Path, base_dir: Path, loss: str
) -> None:
    write_reward(tmp_path, "return None if 'zebra' in completion else -len(completion) / 50")
    extra = (
        f"align: {{loss: {loss}, {POLICY}, max_steps: 4, rollout_epochs: 2, kl_weight: 0.05, learning_rate: 1.0e-3}}"
    )
    run = start(extra)
    aligned = run.artifacts()["align"]
    answers = lines(aligned.path / "logs" / "rollouts.jsonl")
    assert [row["rollout"] for row in answers] == [0] * 12 + [1] * 12
    assert all(row["reward"] == pytest.approx(-len(row["answer"]) / 50) for row in answers)
    first, second, third, _ = lines(aligned.file("losses.jsonl"))
    ratios = [row["measures"]["ratio"] for row in (first, second, third)]
    assert ratios[0] == pytest.approx(1, abs=1e-4) and ratios[2] == pytest.approx(1, abs=1e-4)
    assert ratios[1] != pytest.approx(1, abs=1e-6)
    assert ("value_loss" in first["measures"]) == (loss == "ppo")
    before, after = weights(run, "train", base_dir), weights(run, "align", base_dir)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_reward_that_scores_nothing_stops_with_its_own_words(start: TinyRun, tmp_path: Path) -> None:
    write_reward(tmp_path, "return None")
    with pytest.raises(
        TrainingError, match=r"no two answers to one prompt of rollout 0 could be scored.*the reward function gave None"
    ):
        start(f"align: {{loss: grpo, {POLICY}, max_steps: 1}}")


def test_the_model_compares_its_own_answers_and_learns_from_the_pairs(start: TinyRun, tmp_path: Path) -> None:
    write_reward(tmp_path, "return -len(completion)")
    extra = (
        "prefer: {num_candidates: 3, max_tokens: 10, use_reference: true, rewards: ['python: reward.py:shorter']}\n"
        "align: {loss: dpo, max_steps: 2}"
    ).replace("['python: reward.py:shorter']", "[{name: python, function: 'reward.py:shorter'}]")
    run = start(extra, more="rows.jsonl")
    preferred = run.artifacts()["prefer"]
    counts = preferred.manifest.counts
    assert counts["prompts"] == counts["pairs"] + counts["excluded"] == 10
    pairs = lines(preferred.file("preferences.jsonl"))
    assert pairs and all(len(row["chosen"]) < len(row["rejected"]) for row in pairs)
    assert all(row["scores"]["chosen"] > row["scores"]["rejected"] for row in pairs)
    candidates = lines(preferred.file("candidates.jsonl"))
    assert len(candidates) == 10 and all(len(row["answers"]) == len(row["scores"]) for row in candidates)
    assert run.artifacts()["align"].manifest.counts["used"] == len(pairs)


def test_a_judge_that_always_says_one_gives_no_pair_because_the_orders_disagree(start: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "judge.jsonl").write_text('{"text": "1"}\n' * 40)
    run = start(
        "prefer: {num_candidates: 2, max_tokens: 8, teacher: {kind: scripted, script: judge.jsonl}}",
        until="prefer",
        more="rows.jsonl",
    )
    counts = run.artifacts()["prefer"].manifest.counts
    assert counts["pairs"] == 0
    assert counts.get("excluded_unscored", 0) + counts.get("excluded_alike", 0) == 10


def test_recipes_that_cannot_work_say_what_is_missing(start: TinyRun) -> None:
    for extra, words in [
        ("align: {loss: grpo}", "needs `rewards`"),
        ("align: {loss: dpo, rewards: [exact]}", "learns from comparisons"),
        ("prefer: {num_candidates: 2}", "nobody tells answers apart"),
    ]:
        with pytest.raises(RecipeError, match=words):
            start(extra)
    with pytest.raises(RecipeError, match="nothing to align by"):
        start("align: {loss: dpo}", more="rows.jsonl")


def test_notes_say_what_is_aligned(start: TinyRun, sink: Any) -> None:
    start("align: {loss: dpo, max_steps: 1}")
    assert any(isinstance(event, Note) and event.message.startswith("aligning on cpu") for event in sink.events)


def test_an_answer_of_kto_is_measured_beside_the_reply_to_another_prompt(start: TinyRun, tmp_path: Path) -> None:
    run = start("align: {loss: kto, max_steps: 1}")
    made, renderer = run.artifacts(), RecordingRenderer()
    inputs = Inputs({name: made[name] for name in ("ingest", "curate")}, {})
    answers = render_answers(Align(loss="kto"), inputs, renderer, 100_000)  # type: ignore[arg-type]
    own, strangers = renderer.batches
    assert len(own) == len(strangers) == len(answers.ids) == 2 * len(WORDS) + 2
    prompts_of = {messages[-1].content: messages[-2].content for messages in own}
    assert all(prompts_of[messages[-1].content] != messages[-2].content for messages in strangers)


def test_kto_needs_two_prompts(start: TinyRun, tmp_path: Path) -> None:
    rows = [{"prompt": "which one?", "completion": "fox", "label": True}]
    write_lines(tmp_path / "thumbs.jsonl", rows)
    with pytest.raises(DataError, match="all rows have one prompt"):
        start("align: {loss: kto}", more="thumbs.jsonl")


class RecordingRenderer:
    """Ten tokens for every conversation, the last three of which are the reply."""

    def __init__(self) -> None:
        self.batches: list[list[list[Message]]] = []

    def render_batch(self, conversations: list[list[Message]], supervise: str) -> list[Any]:
        self.batches.append(conversations)
        mask = np.arange(10) >= 7
        return [SimpleNamespace(input_ids=np.arange(10), loss_mask=mask) for _ in conversations]


def test_ppo_moves_a_whole_model_and_leaves_the_value_head_out_of_it(start: TinyRun, tmp_path: Path) -> None:
    write_reward(tmp_path, "return -len(completion)")
    extra = f"align: {{loss: ppo, {POLICY}, max_steps: 1, kl_weight: 0.05, learning_rate: 1.0e-3}}"
    artifacts = start(extra, "train.method=full").artifacts()
    before, after = (load_file(artifacts[stage].path / "model" / "model.safetensors") for stage in ("train", "align"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_answers_are_drawn_and_learnt_without_the_dropout_of_the_training_before(
    start: TinyRun, tmp_path: Path
) -> None:
    write_reward(tmp_path, "return -len(completion)")
    run = start(f"align: {{loss: grpo, {POLICY}, max_steps: 1}}", "train.lora_dropout=0.4")
    assert lines(run.artifacts()["align"].file("losses.jsonl"))[0]["measures"]["ratio"] == pytest.approx(1, abs=1e-4)


def test_prompts_that_leave_no_room_for_an_answer_are_counted(start: TinyRun, tmp_path: Path) -> None:
    write_reward(tmp_path, "return -len(completion)")
    policy = POLICY.replace("max_tokens: 12", "max_tokens: 460")
    rows = [{"instruction": "say it, " * 20 + word, "output": "dog"} for word in WORDS[:3]]
    write_lines(tmp_path / "long.jsonl", rows)
    extra = f"align: {{loss: grpo, {policy}, prompts_per_rollout: 1, max_steps: 1}}".replace(
        "prompts_per_rollout: 3, ", ""
    )
    aligned = start(extra, more="long.jsonl").artifacts()["align"]
    counts = aligned.manifest.counts
    assert (counts["rows"], counts["used"], counts["dropped_overlong"]) == (13, 10, 3)
    assert len(lines(aligned.file("dropped.jsonl"))) == 3


def test_ppo_goes_on_with_its_value_function_and_the_answers_it_would_have_drawn(
    start: TinyRun, tmp_path: Path
) -> None:
    class Stop:
        def emit(self, event: Any) -> None:
            if isinstance(event, Metric) and "value_loss" in event.values and event.step == 3:
                raise KeyboardInterrupt

    write_reward(tmp_path, "return -len(completion) / 50")
    section = f"align: {{loss: ppo, {POLICY}, max_steps: 6, rollout_epochs: 2, kl_weight: 0.05, learning_rate: 1.0e-3}}"
    every = "runtime.checkpoint_every_steps=2"
    with pytest.raises(KeyboardInterrupt):
        start(section, every, events=Stop())
    resumed = start(section, every).artifacts()["align"]
    (tmp_path / "root").rename(tmp_path / "other")
    whole = start(section).artifacts()["align"]
    assert lines(resumed.file("losses.jsonl")) == lines(whole.file("losses.jsonl"))
    answers = [lines(artifact.path / "logs" / "rollouts.jsonl") for artifact in (resumed, whole)]
    assert answers[0] == answers[1] and len(answers[0]) == 36


def test_checkpoints_come_at_the_first_place_between_two_rollouts(start: TinyRun, tmp_path: Path) -> None:
    class Stop:
        def emit(self, event: Any) -> None:
            if isinstance(event, Metric) and "grad_norm" in event.values and event.step == 5 and event.stage == "align":
                raise KeyboardInterrupt

    write_reward(tmp_path, "return -len(completion) / 50")
    section = f"align: {{loss: grpo, {POLICY}, max_steps: 6, rollout_epochs: 2}}"
    with pytest.raises(KeyboardInterrupt):
        start(section, "runtime.checkpoint_every_steps=3", events=Stop())
    found = sorted(path.name for path in (tmp_path / "root").rglob("checkpoints/step-*"))
    assert "step-000004" in found


@pytest.mark.parametrize(("kl_weight", "all_count"), [(0.0, False), (0.1, True)])
def test_groups_of_one_reward_count_where_the_reference_holds_them(
    start: TinyRun, tmp_path: Path, kl_weight: float, all_count: bool
) -> None:
    (tmp_path / "reward.py").write_text(
        "def shorter(prompt, completion, reference):\n"
        "    return len(completion) if prompt[-1]['content'][-1] in '02468' else 0.0\n"
    )
    aligned = start(f"align: {{loss: grpo, {POLICY}, max_steps: 1, kl_weight: {kl_weight}}}").artifacts()["align"]
    answers = lines(aligned.path / "logs" / "rollouts.jsonl")
    level = [row for row in answers if row["reward"] == 0]
    assert 0 < len(level) < len(answers)
    (step,) = lines(aligned.file("losses.jsonl"))
    assert (step["num_supervised"] == sum(row["num_tokens"] for row in answers)) == all_count
