"""Answers that nobody can score, groups that are level, and a judge's bill, in the stage align on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import POLICY, TinyRun, lines, write_lines, write_reward

from tunesmith.errors import RecipeError, TrainingError
from tunesmith.events import Metric, Note
from tunesmith.inference.rollouts import RolloutSampler
from tunesmith.recipe.align import Align
from tunesmith.stages import rollout_samples
from tunesmith.stages.rollout_samples import RolloutSamples
from tunesmith.stages.rollouts import Rollouts
from tunesmith.training.policy_losses import ADVANTAGE, LEVEL_ANSWERS, LEVEL_TOKENS, OLD, PolicyLoss

pytestmark = pytest.mark.slow


class Drawn:
    """Keeps the samples of every rollout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[Any] = []
        draw = Rollouts.draw

        def keep(rollouts: Rollouts, number: int) -> Any:
            self.samples.append(draw(rollouts, number))
            return self.samples[-1]

        monkeypatch.setattr(Rollouts, "draw", keep)


@pytest.mark.parametrize("loss", ["grpo", "ppo"])
def test_an_answer_without_a_score_is_in_no_group_and_is_counted(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
) -> None:
    drawn = Drawn(monkeypatch)
    write_reward(tmp_path, "return None if len(completion) % 3 == 0 else float(len(completion))")
    aligned = start(f"align: {{loss: {loss}, {POLICY}, max_steps: 2, max_failures: 0}}").artifacts()["align"]
    answers = lines(aligned.path / "logs" / "rollouts.jsonl")
    unscored = [row for row in answers if row["reward"] is None]
    assert unscored and all(row["why"] == "python: the reward function gave None" for row in unscored)
    counts = aligned.manifest.counts
    assert (counts["answers"], counts["unscored_answers"]) == (24, len(unscored))
    assert 0 < sum(len(samples.ids) for samples in drawn.samples) <= 24 - len(unscored)


def test_a_rollout_that_nobody_can_score_gives_way_to_other_prompts(
    start: TinyRun,
    tmp_path: Path,
    sink: Any,
) -> None:
    write_reward(tmp_path, "return None if prompt[-1]['content'][-1] in '01234567' else float(len(completion))")
    policy = POLICY.replace("prompts_per_rollout: 3", "prompts_per_rollout: 1")
    run = start(f"align: {{loss: grpo, {policy}, max_steps: 3, max_failures: 60}}")
    answers = lines(run.artifacts()["align"].path / "logs" / "rollouts.jsonl")
    of_each = {number: [row for row in answers if row["rollout"] == number] for number in range(3)}
    assert all(len(rows) % 4 == 0 and rows[-1]["reward"] is not None for rows in of_each.values())
    assert any(len(rows) > 4 for rows in of_each.values())
    assert all(row["reward"] is None for rows in of_each.values() for row in rows[:-4])
    notes = [event.message for event in sink.events if isinstance(event, Note) and "in their place" in event.message]
    assert len(notes) == len(answers) // 4 - 3


@pytest.mark.parametrize(("allowed", "asked"), [(0, 12), (12, 24), (30, 36)])
def test_more_answers_in_a_row_without_a_score_than_are_allowed_stop_the_run(
    start: TinyRun,
    tmp_path: Path,
    allowed: int,
    asked: int,
) -> None:
    write_reward(tmp_path, "return None")
    with pytest.raises(TrainingError, match=f"{asked} answers in a row have no score, allowed are {allowed}") as caught:
        start(f"align: {{loss: grpo, {POLICY}, max_steps: 1, max_failures: {allowed}}}")
    assert caught.value.where == "recipe.align.max_failures"


@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_level_groups_count_in_the_divisor_and_are_not_computed(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    normalisation: str,
) -> None:
    drawn = Drawn(monkeypatch)
    # one prompt of ten has answers that differ; all ten are drawn at once
    write_reward(tmp_path, "return float(len(completion)) if prompt[-1]['content'].endswith('3') else 1.0")
    policy = POLICY.replace("prompts_per_rollout: 3", "prompts_per_rollout: 10")
    extra = f"align: {{loss: grpo, {policy}, max_steps: 1, normalisation: {normalisation}}}"
    aligned = start(extra).artifacts()["align"]
    (samples,) = drawn.samples
    answers = lines(aligned.path / "logs" / "rollouts.jsonl")
    assert (len(samples.lengths), len(answers)) == (4, 40)
    assert float(samples.columns[LEVEL_ANSWERS].sum()) == pytest.approx(36)
    num_tokens = sum(row["num_tokens"] for row in answers)
    assert float(samples.columns[LEVEL_TOKENS].sum()) + samples.num_targets.sum() == pytest.approx(num_tokens)
    units = PolicyLoss(Align(loss="grpo", rewards=["exact"], normalisation=normalisation)).units(samples, range(4))  # type: ignore[arg-type]  # pyright: ignore
    assert units == pytest.approx(num_tokens if normalisation == "token" else 40)
    # Before the first update the loss is minus the weighted mean of the advantages, over all forty answers.
    advantages, lengths = samples.columns[ADVANTAGE], samples.num_targets
    weight = {"token": lengths, "sequence": np.ones(4), "constant": lengths / 12}[normalisation]
    (row,) = lines(aligned.file("losses.jsonl"))
    assert row["loss"] == pytest.approx(-float((weight * advantages).sum()) / units, rel=1e-3, abs=1e-6)
    if normalisation != "constant":
        assert row["measures"]["ratio"] == pytest.approx(1, abs=1e-4)


def test_a_rollout_of_level_groups_alone_changes_nothing_and_computes_one(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = Drawn(monkeypatch)
    write_reward(tmp_path, "return 1.0")
    aligned = start(f"align: {{loss: grpo, {POLICY}, max_steps: 1}}").artifacts()["align"]
    (samples,) = drawn.samples
    assert (len(samples.lengths), float(samples.columns[LEVEL_ANSWERS].sum())) == (4, pytest.approx(8))
    assert lines(aligned.file("losses.jsonl"))[0]["loss"] == 0


def test_an_answer_ended_by_a_stop_string_is_whole_and_its_reward_sees_what_stands_before_it(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = Drawn(monkeypatch)
    write_reward(tmp_path, "return float(len(completion))")
    section = f"align: {{loss: grpo, {POLICY}, max_steps: 1, stop: [e, o]}}"
    aligned = start(section).artifacts()["align"]
    answers = lines(aligned.path / "logs" / "rollouts.jsonl")
    (samples,) = drawn.samples
    assert {row.get("stop_string") for row in answers} >= {"e", "o"}
    for row in answers:
        assert "e" not in row["answer"] and "o" not in row["answer"]
        assert row["reward"] == len(row["answer"])
        assert row["finish_reason"] == ("length" if row["num_tokens"] == 12 and not row.get("stop_string") else "stop")
    learnt = {name: int(number) for name, number in zip(samples.ids, samples.num_targets, strict=True)}
    counted = {f"{row['row']}, answer {n % 4}": row["num_tokens"] for n, row in enumerate(answers)}
    assert learnt and all(counted[name] == number for name, number in learnt.items()), "the stop string is learnt"
    with pytest.raises(RecipeError, match="at least 1 character"):
        start(f"align: {{loss: grpo, {POLICY}, max_steps: 1, stop: ['']}}")


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ("loss: grpo", 0),
        ("loss: grpo, rollout_epochs: 2", 1),
        ("loss: rloo", 0),
        ("loss: rloo, kl_weight: 0.1", 2),  # the divergence in the reward is of both policies in one arithmetic
        ("loss: grpo, kl_weight: 0.1", 1),
    ],
)
def test_in_bf16_a_rollout_costs_no_forward_pass_that_its_one_step_makes_anyway(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    passes: int,
) -> None:
    measured = list[int]()
    measure = rollout_samples.measure_tokens

    def counted(model: Any, samples: Any, value_of: Any) -> Any:
        measured.append(len(samples.lengths))
        return measure(model, samples, value_of)

    monkeypatch.setattr(rollout_samples, "measure_tokens", counted)
    write_reward(tmp_path, "return float(len(completion))")
    run = start(f"align: {{{options}, {POLICY}, max_steps: 2}}", "runtime.precision=bf16")
    rollouts = 1 if "epochs" in options else 2
    assert len(measured) == passes * rollouts
    for row in lines(run.artifacts()["align"].file("losses.jsonl"))[:: 3 - rollouts]:
        assert row["measures"]["ratio"] == pytest.approx(1, abs=1e-2 if "epochs" in options else 1e-6)


def test_the_divergence_is_a_part_of_rloo_s_reward(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equation 2 of arXiv 2402.14740, with the reference shifted by one nat a token: R = r - kl_weight * length."""
    drawn = Drawn(monkeypatch)
    samples_of = RolloutSamples._computed  # pyright: ignore[reportPrivateUsage]

    def shifted(*arguments: Any) -> Any:
        samples = samples_of(*arguments)
        samples.token_columns["reference"][:] = samples.token_columns[OLD] - 1
        return samples

    monkeypatch.setattr(RolloutSamples, "_computed", shifted)
    write_reward(tmp_path, "return float(len(completion))")
    run = start(f"align: {{loss: rloo, {POLICY}, max_steps: 1, kl_weight: 0.5, prompts_per_rollout: 2}}".replace("prompts_per_rollout: 3, ", ""))  # fmt: skip
    rows = lines(run.artifacts()["align"].path / "logs" / "rollouts.jsonl")
    expected: list[float] = []
    for start_at in (0, 4):
        totals = [row["reward"] - 0.5 * row["num_tokens"] for row in rows[start_at : start_at + 4]]
        expected += [total - (sum(totals) - total) / 3 for total in totals]
    (samples,) = drawn.samples
    assert samples.columns[ADVANTAGE].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert "reference" not in samples.token_columns
    (row,) = lines(run.artifacts()["align"].file("losses.jsonl"))  # a mean over answers, each as a whole
    assert row["loss"] == pytest.approx(-float(np.mean(expected)), rel=1e-3, abs=1e-4)
    assert row["measures"]["ratio"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("normalisation", ["token", "sequence", "constant"])
def test_rloo_has_no_choice_of_normalisation(start: TinyRun, normalisation: str) -> None:
    with pytest.raises(RecipeError, match=f"`normalisation: {normalisation}` is none of rloo"):
        start(f"align: {{loss: rloo, {POLICY}, normalisation: {normalisation}}}")


def test_what_prompts_begin_with_is_computed_once_and_changes_no_answer(
    start: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_reward(tmp_path, "return -float(len(completion))")
    sample, prefixes, shared = RolloutSampler.sample, list[int](), True

    def watched(sampler: Any, prompts: Any, sampling: Any, *, shared_prefix: Any, **options: Any) -> Any:
        prefixes.append(len(shared_prefix))
        assert all(prompt.input_ids[: len(shared_prefix)] == tuple(shared_prefix) for prompt in prompts)
        return sample(sampler, prompts, sampling, shared_prefix=shared_prefix if shared else (), **options)

    monkeypatch.setattr(RolloutSampler, "sample", watched)
    rewards = "rewards: [{name: python, function: 'reward.py:shorter'}]"
    extra = f"prefer: {{num_candidates: 2, max_tokens: 8, {rewards}}}\nalign: {{loss: grpo, {POLICY}, max_steps: 1}}"
    found = start(extra, "ingest.system_prompt=Answer in one short word.").artifacts()
    (tmp_path / "root").rename(tmp_path / "first")
    first = [tmp_path / "first" / found[stage].path.relative_to(tmp_path / "root") for stage in ("prefer", "align")]
    shared = False
    again = start(extra, "ingest.system_prompt=Answer in one short word.").artifacts()
    assert min(prefixes) > 20, "a system prompt at least"
    assert lines(first[0] / "candidates.jsonl") == lines(again["prefer"].file("candidates.jsonl"))
    apart = [lines(folder / "logs" / "rollouts.jsonl") for folder in (first[1], again["align"].path)]
    assert apart[0] == apart[1] and len(apart[0]) == 12


def test_the_judge_s_bill_is_that_of_the_whole_stage_after_a_kill(start: TinyRun, tmp_path: Path) -> None:
    class Stop:
        def emit(self, event: Any) -> None:
            if isinstance(event, Metric) and event.step == 3 and "reward" in event.values:
                raise KeyboardInterrupt

    script = [{"match": "zzz", "text": "1"}, {"match": "fox", "error": "no"}, {"match": ".", "text": "5"}]
    write_lines(tmp_path / "judge.jsonl", script)
    teacher = "teacher: {kind: scripted, script: judge.jsonl, price_usd_per_mtok: [100.0, 100.0]}"
    sampling = "num_generations: 4, prompts_per_rollout: 3, max_tokens: 12, max_failures: 1000"
    section = f"align: {{loss: rloo, rewards: [judge], {teacher}, {sampling}, max_steps: 4}}"
    every = "runtime.checkpoint_every_steps=1"
    with pytest.raises(KeyboardInterrupt):
        start(section, every, events=Stop())
    resumed = start(section, every).artifacts()["align"]
    (tmp_path / "root").rename(tmp_path / "other")
    whole = start(section, every).artifacts()["align"]
    for name in ("num_requests", "num_failed", "cost_usd", "judge"):
        assert resumed.facts[name] == whole.facts[name], name
    assert resumed.facts["num_requests"] > 24 and resumed.facts["cost_usd"] > 0
    assert resumed.manifest.counts["answers"] == whole.manifest.counts["answers"] == 48
    kept = [lines(artifact.file("answers.jsonl")) for artifact in (resumed, whole)]
    assert sorted(row["key"] for row in kept[0]) == sorted(row["key"] for row in kept[1])
