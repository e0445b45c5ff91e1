"""Stage reward_model on a tiny model: pairs in, a reward model out that tells new pairs apart and rewards PPO's answers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import WORDS, TinyRun, lines, write_lines, write_reward

from small_models import build_model
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.events import Metric, Note
from tunesmith.inference.reward_model import open_reward_model
from tunesmith.model.value_head import load_value_head, new_value_head, save_value_head
from tunesmith.protocols import Attempt
from tunesmith.recipe import RewardModel
from tunesmith.recipe.align import Align
from tunesmith.stages.reward_pairs import split_pairs
from tunesmith.stages.scalar_heads import first_value_head
from tunesmith.types import Inputs, Message, Preference

pytestmark = pytest.mark.slow

PPO = "loss: ppo, num_generations: 2, prompts_per_rollout: 3, max_tokens: 8, max_steps: 2, learning_rate: 1.0e-3"


def planted_pairs(number: int) -> list[dict[str, Any]]:
    """The better answer thanks, wherever in it; the other words are the same kind of noise in both."""
    rng = np.random.default_rng(5)
    rows = []
    for n in range(number):
        good, bad = (rng.choice(WORDS, rng.integers(2, 8)).tolist() for _ in range(2))
        good.insert(int(rng.integers(0, len(good) + 1)), "please")
        rows.append({"prompt": f"which {WORDS[n % 16]} {n}?", "chosen": " ".join(good), "rejected": " ".join(bad)})
    return rows


@pytest.fixture
def start(start: TinyRun, tmp_path: Path) -> Any:
    """Up to the stage reward_model, on planted pairs."""
    write_lines(tmp_path / "pairs.jsonl", planted_pairs(30))
    return partial(start, until="reward_model")


def attempts_of(ids: list[str], rows: list[dict[str, Any]], side: str) -> list[Attempt]:
    """One answer of each pair of these ids."""
    pairs = [Preference(prompt=[Message(role="user", content=row.pop("prompt"))], **row) for row in map(dict, rows)]
    by_id = {pair.id: pair for pair in pairs}
    return [Attempt(tuple(by_id[name].prompt), getattr(by_id[name], side)) for name in ids]


def test_a_trained_reward_model_tells_held_out_pairs_apart_and_its_files_give_the_same_scores(
    start: Any, tmp_path: Path, base_dir: Path
) -> None:
    rows = planted_pairs(200)
    write_lines(tmp_path / "pairs.jsonl", rows)
    made = start("reward_model: {learning_rate: 5.0e-3, num_epochs: 3, held_out_fraction: 0.25}").artifacts()[
        "reward_model"
    ]
    facts, counts = made.facts, made.manifest.counts
    assert made.manifest.kind == "reward_model"
    assert (counts["pairs"], counts["used"], counts["dropped"]) == (200, 150, 0)
    assert facts["held_out_pairs"] == counts["held_out"] == 50
    assert facts["held_out_accuracy"] > 0.9 and facts["held_out_margin"] > 5 * facts["held_out_margin_stderr"] > 0
    scored = lines(made.file("held_out.jsonl"))
    right = np.mean([each["chosen"] > each["rejected"] for each in scored])
    assert facts["held_out_accuracy"] == pytest.approx(right, abs=1e-6)
    scorer = open_reward_model(made.path, base_dir, device="cpu", dtype=torch.float32)
    for side in ("chosen", "rejected"):
        attempts = attempts_of([each["id"] for each in scored], rows, side)
        assert scorer(attempts) == pytest.approx([each[side] for each in scored], abs=1e-3)
    stranger = build_model(
        tmp_path / "stranger", initializer_range=0.1
    )  # of the same shapes: it would fit, and mean nothing
    elsewhere = open_reward_model(made.path, stranger, device="cpu", dtype=torch.float32)
    assert elsewhere(attempts) == scorer(attempts)
    suffixes = {path.suffix for path in made.path.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pth", ".pkl"}


def test_marked_pairs_are_held_out_and_every_other_row_is_counted_where_it_went(start: Any, tmp_path: Path) -> None:
    rows = planted_pairs(8)
    rows[0]["split"] = rows[1]["split"] = "test"
    rows.append({"prompt": "who?", "chosen": "please a dog", "rejected": " please a dog"})
    rows.append({"prompt": "which is it, " * 300, "chosen": "please", "rejected": "dog"})
    write_lines(tmp_path / "pairs.jsonl", rows)
    made = start("reward_model: {max_steps: 1}").artifacts()["reward_model"]
    counts = made.manifest.counts
    assert (counts["pairs"], counts["used"], counts["held_out"], counts["dropped"]) == (10, 6, 2, 2)
    assert (counts["dropped_alike"], counts["dropped_overlong"]) == (1, 1)
    assert {row["reason"] for row in lines(made.file("dropped.jsonl"))} == {"alike", "overlong"}


def test_what_the_tuned_model_will_be_asked_is_not_learnt_from(start: Any, tmp_path: Path) -> None:
    asked = [{"prompt": f"say {word} {n}", "chosen": "please", "rejected": "no"} for n, word in enumerate(WORDS[:10])]
    write_lines(tmp_path / "pairs.jsonl", asked)
    run = start("reward_model: {max_steps: 1, held_out_fraction: 0}", "curate.test_fraction=0.3")
    counts = run.artifacts()["reward_model"].manifest.counts
    assert run.artifacts()["curate"].facts["num_test"] == 3
    assert (counts["pairs"], counts["used"], counts["dropped_in_test"]) == (10, 7, 3)


def test_no_prompt_and_no_origin_is_on_both_sides() -> None:
    def pair(prompt: str, chosen: str, origin: str, split: Any = None) -> Preference:
        messages = [Message(role="user", content=prompt)]
        return Preference(prompt=messages, chosen=chosen, rejected="dog", origin=origin, split=split)

    rows = [
        pair("Say it!", "fox", "a", "test"),
        pair("say  IT!", "the fox", "b", "train"),  # the same prompt
        pair("say that!", "fox", "a", "train"),  # a paraphrase
        pair("what?", "fox", "c"),
        pair("who?", " dog ", "d"),
    ]
    learnt, held_out, dropped = split_pairs(rows, RewardModel())
    assert [row.origin for row in learnt] == ["c"]
    assert held_out == [rows[0], rows[2]]
    assert [row.reason for row in dropped] == ["alike", "held_out_prompt"]
    free = [pair(f"{n}?", "fox", str(n // 2)) for n in range(40)]
    learnt, held_out, dropped = split_pairs(free, RewardModel(held_out_fraction=0.2))
    assert (len(learnt), len(held_out), dropped) == (32, 8, [])
    assert not {row.origin for row in learnt} & {row.origin for row in held_out}
    assert split_pairs(free[::-1], RewardModel(held_out_fraction=0.2))[1] == held_out[::-1]


def test_without_pairs_or_without_a_measure_it_says_so(start: Any, tmp_path: Path, sink: Any) -> None:
    with pytest.raises(RecipeError, match="no pairs to learn from"):
        start("reward_model: {}", more="rows.jsonl")
    run = start("reward_model: {max_steps: 1, held_out_fraction: 0}")
    assert run.artifacts()["reward_model"].facts["held_out_pairs"] == 0
    assert run.artifacts()["reward_model"].file("held_out.jsonl").read_text() == ""
    assert any(isinstance(event, Note) and "no pair is held out" in event.message for event in sink.events)
    write_lines(tmp_path / "pairs.jsonl", [{"prompt": "who?", "chosen": "a dog", "rejected": "a dog "}])
    with pytest.raises(DataError, match="none of 1 pairs can be learnt from; the first: alike"):
        start("reward_model: {}")


def test_the_pairs_own_scores_are_a_margin_where_asked(start: Any, tmp_path: Path) -> None:
    rows = [{**row, "score_chosen": 3.0, "score_rejected": 1.0} for row in planted_pairs(6)]
    write_lines(tmp_path / "pairs.jsonl", rows)
    losses = [
        start(f"reward_model: {{max_steps: 1, held_out_fraction: 0, margin_weight: {weight}}}")
        .artifacts()["reward_model"]
        .facts["first_loss"]
        for weight in (0, 2)
    ]
    assert losses[1] > losses[0] + 1  # they should win by 4


@pytest.mark.parametrize(("layers", "changed"), [("0", set()), ("1", {"1"}), ("all", {"0", "1"})])
def test_only_the_topmost_blocks_of_the_adapter_change_and_all_of_it_is_kept(
    start: Any, layers: str, changed: set[str]
) -> None:
    run = start(f"reward_model: {{max_steps: 2, trainable_layers: {layers}}}")
    before, after = (
        load_file(run.artifacts()[stage].path / "adapter" / "adapter_model.safetensors")
        for stage in ("train", "reward_model")
    )
    assert before.keys() == after.keys()
    moved = {name.split("layers.")[1][0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == changed
    head = load_value_head(run.artifacts()["reward_model"].path, 64)
    assert not torch.equal(head.weight, new_value_head(64, rng_seed=17).weight)


def test_more_blocks_than_there_are_is_an_error_of_this_section(start: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        start("reward_model: {trainable_layers: 3}")
    assert caught.value.where == "recipe.reward_model.trainable_layers"


class Stop:
    """Ctrl-C after a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def emit(self, event: Any) -> None:
        is_step = isinstance(event, Metric) and "grad_norm" in event.values
        if is_step and (event.stage, event.step) == (self.stage, self.step):
            raise KeyboardInterrupt


def test_all_weights_learn_but_the_output_head_and_a_stopped_training_goes_on(
    start: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    untied = build_model(tmp_path_factory.mktemp("untied") / "tiny", tie_word_embeddings=False)
    given = ("train.method=full", "train.learning_rate=1e-4", f"base_model={untied}")
    section = "reward_model: {max_steps: 4, learning_rate: 1.0e-3}"
    with pytest.raises(KeyboardInterrupt):
        start(section, *given, events=Stop("reward_model", 2))
    resumed = start(section, *given).artifacts()
    (tmp_path / "root").rename(tmp_path / "other")
    whole = start(section, *given).artifacts()
    for name in ("losses.jsonl", "value_head.safetensors", "held_out.jsonl", "model/model.safetensors"):
        made = [artifacts["reward_model"].file(name).read_bytes() for artifacts in (resumed, whole)]
        assert made[0] == made[1], name
    before, after = (load_file(whole[stage].path / "model/model.safetensors") for stage in ("train", "reward_model"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert "lm_head.weight" in same and "model.embed_tokens.weight" not in same and len(same) < len(before) / 2


@pytest.mark.parametrize("layers", ["all", 0], ids=["all-layers", "head-alone"])
def test_two_processes_with_a_part_of_the_weights_each_learn_what_one_does(
    start: Any, sink: Any, layers: str | int
) -> None:
    """The head is whole on both, and no part of the model: where it alone is trained, no other weight has a gradient."""
    section = f"reward_model: {{max_steps: 2, global_batch_size: 4, learning_rate: 1.0e-2, trainable_layers: {layers}}}"
    alone = start(section).artifacts()["reward_model"]
    expected, tensors = lines(alone.file("losses.jsonl")), load_file(alone.file("value_head.safetensors"))
    names = load_file(alone.file("adapter/adapter_model.safetensors")).keys()
    shutil.rmtree(alone.path.resolve())
    several = ("runtime.num_processes=2", "runtime.device=cpu", "runtime.shard_weights=true")
    both = start(section, *several).artifacts()["reward_model"]
    losses = lines(both.file("losses.jsonl"))
    assert [list(row) for row in losses] == [list(row) for row in expected]
    assert [row["loss"] for row in losses] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert both.facts["held_out_margin"] == pytest.approx(alone.facts["held_out_margin"], rel=1e-2, abs=1e-3)
    for name, tensor in load_file(both.file("value_head.safetensors")).items():
        torch.testing.assert_close(tensor, tensors[name], atol=2e-4, rtol=1e-2)
    assert load_file(both.file("adapter/adapter_model.safetensors")).keys() == names
    notes = [event.message for event in sink.events if isinstance(event, Note)]
    assert "weights are spread over 2 processes" in notes


def test_ppo_is_rewarded_by_the_reward_model_of_its_recipe_and_its_value_function_is_kept(
    start: Any, tmp_path: Path, base_dir: Path
) -> None:
    write_reward(tmp_path, "return -len(completion)")
    extra = (
        "prefer: {num_candidates: 3, max_tokens: 10, use_reference: true, rewards: [{python: 'reward.py:shorter'}]}\n"
        "reward_model: {learning_rate: 5.0e-3, num_epochs: 2}\n"
        f"align: {{{PPO}, rewards: [reward_model], value_function: reward_model}}"
    )
    with pytest.raises(KeyboardInterrupt):
        start(extra, "runtime.checkpoint_every_steps=1", until="align", more="rows.jsonl", events=Stop("align", 1))
    run = start(extra, until="align", more="rows.jsonl")
    made = run.artifacts()
    assert made["reward_model"].manifest.counts["pairs"] == made["prefer"].manifest.counts["pairs"] > 3
    answers = lines(made["align"].path / "logs" / "rollouts.jsonl")
    prompts = {row["id"]: row["messages"][:-1] for row in lines(made["curate"].file("train.jsonl"))}
    scorer = open_reward_model(made["reward_model"].path, base_dir, device="cpu", dtype=torch.float32)
    attempts = [
        Attempt(tuple(Message.model_validate(each) for each in prompts[row["row"]]), row["answer"]) for row in answers
    ]
    assert [row["reward"] for row in answers] == pytest.approx(scorer(attempts), abs=1e-3)
    head = load_value_head(made["align"].path, 64)
    assert not torch.equal(head.weight, load_value_head(made["reward_model"].path, 64).weight)
    assert json.loads(made["align"].file("losses.jsonl").read_text().splitlines()[0])["measures"]["value_loss"] > 0
    (tmp_path / "root").rename(tmp_path / "other")
    whole = start(extra, until="align", more="rows.jsonl").artifacts()["align"]
    for name in ("losses.jsonl", "value_head.safetensors", "logs/rollouts.jsonl"):
        assert whole.file(name).read_bytes() == made["align"].file(name).read_bytes(), name
    with pytest.raises(ModelError, match="expected a reward model, found an artifact of kind 'checkpoint'"):
        open_reward_model(whole.path, base_dir, device="cpu", dtype=torch.float32)


def test_a_later_ppo_begins_at_the_value_function_of_the_one_before_and_exports_hold_none(
    start: Any, tmp_path: Path, base_dir: Path, sink: Any
) -> None:
    (tmp_path / "reward.py").write_text("def longer(prompt, completion, reference):\n    return len(completion) / 9\n")
    extra = f"align: {{{PPO}, rewards: [{{name: python, function: 'reward.py:longer'}}]}}"
    first = start(extra, "export.formats=[safetensors]", until=None, more="rows.jsonl")
    assert [path.name for path in first.artifacts()["export"].path.rglob("value_head*")] == []
    kept = load_value_head(first.artifacts()["align"].path, 64)
    later = start(extra, f"base_model={first.path}", until="align", more="rows.jsonl").artifacts()
    assert any(
        isinstance(event, Note) and "begins where the PPO before left it" in event.message for event in sink.events
    )
    assert later["base_model"].facts["num_parameters"] == first.artifacts()["base_model"].facts["num_parameters"]
    assert not torch.equal(load_value_head(later["align"].path, 64).weight, kept.weight)


def test_where_a_value_function_begins(tmp_path: Path, sink: Any) -> None:
    trained = new_value_head(8, rng_seed=1)
    save_value_head(tmp_path / "reward", trained)
    save_value_head(tmp_path / "base", new_value_head(8, rng_seed=2))
    listed = ({"name": "reward_model", "model": "mine", "weight": 2.0},)
    inputs = Inputs({}, {"mine": tmp_path / "reward"})

    def begin(base: str, **changes: Any) -> torch.Tensor:
        section = Align.model_validate({"loss": "ppo", "rewards": listed, "rng_seed": 3, **changes})
        return first_value_head(section, inputs, tmp_path / base, 8, sink).weight

    assert torch.equal(begin("base", value_function="reward_model"), 2 * trained.weight)
    assert torch.equal(begin("base"), new_value_head(8, rng_seed=2).weight)
    assert torch.equal(begin("base", value_function="new"), new_value_head(8, rng_seed=3).weight)
    assert torch.equal(begin("elsewhere"), new_value_head(8, rng_seed=3).weight)


def test_recipes_that_name_no_reward_model_say_what_is_missing(start: Any) -> None:
    for extra, words in [
        (f"align: {{{PPO}, rewards: [reward_model]}}", "add a section `reward_model` that trains one"),
        ("prefer: {rewards: [reward_model]}\nreward_model: {}", "so it cannot judge them"),
        (f"align: {{{PPO}, rewards: [exact], value_function: reward_model}}", "list one in `rewards`"),
        ("align: {loss: dpo, value_function: reward_model}", "list one in `rewards`"),
    ]:
        with pytest.raises(RecipeError, match=words):
            start(extra)
