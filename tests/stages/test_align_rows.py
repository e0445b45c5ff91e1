"""Which rows prefer and align use: whole answers, no longer than training's, away from the test rows; and which weights move."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import WORDS, TinyRun, lines, write_lines, write_reward

from tunesmith.errors import DataError, TrainingError
from tunesmith.inference.rollouts import Rollout
from tunesmith.recipe.align import Prefer
from tunesmith.stages import prefer
from tunesmith.stages.prefer import Candidates
from tunesmith.types import Conversation, Message

pytestmark = pytest.mark.slow

ROW = Conversation(messages=[Message(role="user", content="which?"), Message(role="assistant", content="fox")])


@pytest.mark.parametrize(
    ("scores", "cut_off", "expected"),
    [
        ([0.9, 0.5, 0.1], [True, False, False], ("b", "c")),
        ([0.9, 0.5, 0.1], [False, False, True], ("a", "c")),
        ([0.9, 0.1], [True, False], "cut_off"),
        ([0.9, 0.1], [True, True], "cut_off"),
        ([0.5, 0.5], [True, False], "level"),
        ([None, 0.5], [False, False], "unscored"),
    ],
)
def test_an_answer_that_was_cut_off_may_be_rejected_and_is_never_chosen(
    scores: list[float | None], cut_off: list[bool], expected: Any
) -> None:
    pairs = prefer._Pairs()  # pyright: ignore[reportPrivateUsage]
    candidates = Candidates(row=ROW.id, answers=["a", "b", "c"][: len(scores)], cut_off=cut_off, scores=scores)
    prefer._choose(Prefer(rewards=["exact"]), ROW, candidates, None, pairs)  # type: ignore[list-item]  # pyright: ignore
    if isinstance(expected, tuple):
        assert [(pair.chosen, pair.rejected) for pair in pairs.kept] == [expected] and not pairs.excluded
    else:
        assert [row.reason for row in pairs.excluded] == [expected] and not pairs.kept


def test_a_text_is_whole_where_the_model_ended_it_once() -> None:
    def drawn(reason: Any) -> Rollout:
        return Rollout((5,), (-1.0,), reason)

    found = prefer._distinct("row", [("fox ", drawn("length")), ("dog", drawn("length")), ("fox", drawn("stop"))])  # pyright: ignore
    assert (found.answers, found.cut_off) == (["fox", "dog"], [False, True])


def test_candidates_that_end_at_max_tokens_give_pairs_with_the_row_s_own_answer_alone(
    start: TinyRun,
    tmp_path: Path,
) -> None:
    write_reward(tmp_path, "return -len(completion)")
    rewards = "[{name: python, function: 'reward.py:shorter'}]"
    run = start(
        f"prefer: {{num_candidates: 3, max_tokens: 2, use_reference: true, rewards: {rewards}}}",
        until="prefer",
        more="rows.jsonl",
    )
    preferred = run.artifacts()["prefer"]
    candidates = {row["row"]: row for row in lines(preferred.file("candidates.jsonl"))}
    assert any(any(row["cut_off"]) for row in candidates.values())
    for pair in lines(preferred.file("preferences.jsonl")):
        found = candidates[pair["source"].removeprefix("prefer:")]
        assert found["cut_off"][found["answers"].index(pair["chosen"])] is False
    counts = preferred.manifest.counts
    assert counts["excluded_cut_off"] + counts["pairs"] == 10 and counts["excluded_cut_off"] > 0


@pytest.mark.parametrize("section", ["align: {loss: dpo, max_steps: 1}", "reward_model: {max_steps: 1}"])
def test_a_prefer_stage_without_a_pair_is_named_with_its_reasons(start: TinyRun, tmp_path: Path, section: str) -> None:
    (tmp_path / "reward.py").write_text("def same(prompt, completion, reference):\n    return 1\n")
    prefer = "prefer: {num_candidates: 3, max_tokens: 4, rewards: [{name: python, function: 'reward.py:same'}]}"
    with pytest.raises(DataError, match=r"made no pair of 10 prompts \((cut_off|level|alike) \d") as caught:
        start(f"{prefer}\n{section}", until=section.partition(":")[0], more="rows.jsonl")
    assert caught.value.where == "recipe.prefer" and "prefer.temperature" in (caught.value.hint or "")


def test_answers_longer_than_training_s_are_left_out(start: TinyRun, tmp_path: Path) -> None:
    pairs = [{"prompt": f"which {word}?", "chosen": f"fox {word}", "rejected": "dog"} for word in WORDS[:4]]
    pairs.append({"prompt": "which is it, " * 12, "chosen": "fox", "rejected": "dog"})
    write_lines(tmp_path / "short.jsonl", pairs)
    aligned = start("align: {loss: dpo, max_steps: 1}", "tokenize.max_length=64", more="short.jsonl")
    aligned = aligned.artifacts()["align"]
    assert (aligned.manifest.counts["used"], aligned.manifest.counts["dropped_overlong"]) == (4, 1)
    assert lines(aligned.file("dropped.jsonl"))[0]["detail"].endswith("expected at most 64")


def test_pairs_that_ask_what_a_test_row_asks_are_left_out(start: TinyRun, tmp_path: Path) -> None:
    question = "where is my order number nine and when will it come to my house"
    write_lines(tmp_path / "test.jsonl", [{"instruction": question, "output": "dog"}])
    asked = [f"say {word} {n}" for n, word in enumerate(WORDS[:10])]
    pairs = [{"prompt": text, "chosen": "fox", "rejected": "dog"} for text in asked]
    pairs.append({"prompt": f"please tell me {question}, thank you", "chosen": "fox", "rejected": "dog"})
    write_lines(tmp_path / "pairs.jsonl", pairs)
    held_out = ["curate.test_fraction=0.3", "ingest.test_files=[test.jsonl]", "ingest.system_prompt=Be short."]
    for loss, answers in [("dpo", 1), ("kto", 2)]:
        run = start(f"align: {{loss: {loss}, max_steps: 1}}", *held_out)
        num_test = run.artifacts()["curate"].manifest.counts["test"]
        aligned = run.artifacts()["align"]
        counts = aligned.manifest.counts
        assert 1 < num_test < 10 and counts["dropped_in_test"] == answers * (num_test - 1)
        assert counts["dropped_contaminated_test"] == answers
        assert counts["rows"] == answers * len(pairs) == counts["used"] + counts["dropped"]
        first = next(row for row in lines(aligned.file("dropped.jsonl")) if row["reason"] == "in_test")
        assert first["detail"].startswith("the prompt is that of the test row rows.jsonl:")


@pytest.mark.parametrize(("loss", "answers"), [("dpo", 1), ("kto", 2)])
def test_comparisons_marked_as_test_rows_are_counted(start: TinyRun, tmp_path: Path, loss: str, answers: int) -> None:
    pairs = [{"prompt": f"which {word}?", "chosen": f"fox {word}", "rejected": "dog"} for word in WORDS[:7]]
    write_lines(tmp_path / "pairs.jsonl", [*pairs[:4], *({**pair, "split": "test"} for pair in pairs[4:])])
    aligned = start(f"align: {{loss: {loss}, max_steps: 1}}").artifacts()["align"]
    counts = aligned.manifest.counts
    assert (counts["used"], counts["dropped_marked_test"]) == (4 * answers, 3 * answers)
    assert counts["rows"] == counts["used"] + counts["dropped"] == 7 * answers
    assert lines(aligned.file("dropped.jsonl"))[0]["where"] == "pairs.jsonl:5"


@pytest.mark.parametrize(("loss", "answers"), [("dpo", 1), ("kto", 2)])
def test_pairs_that_come_again_are_counted_and_learnt_from_once(
    start: TinyRun,
    tmp_path: Path,
    loss: str,
    answers: int,
) -> None:
    pairs = [{"prompt": f"which {word}?", "chosen": f"fox {word}", "rejected": "dog"} for word in WORDS[:4]]
    write_lines(tmp_path / "pairs.jsonl", [*pairs, pairs[1], pairs[2]])
    aligned = start(f"align: {{loss: {loss}, max_steps: 1}}").artifacts()["align"]
    counts = aligned.manifest.counts
    assert (counts["used"], counts["dropped_duplicate"]) == (4 * answers, 2 * answers)
    assert counts["rows"] == counts["used"] + counts["dropped"] == 6 * answers
    found = [row["where"] for row in lines(aligned.file("dropped.jsonl"))]
    assert sorted(set(found)) == ["pairs.jsonl:5", "pairs.jsonl:6"]


def test_aligning_moves_the_layers_that_training_moved(start: TinyRun, base_dir: Path) -> None:
    options = ["train.method=full", "train.trainable_layers=1"]
    artifacts = start("align: {loss: dpo, max_steps: 2, learning_rate: 1.0e-2}", *options).artifacts()
    files = [artifacts[stage].path / "model" / "model.safetensors" for stage in ("train", "align")]
    base, tuned, aligned = (load_file(path) for path in (base_dir / "model.safetensors", *files))
    moved = {name for name in tuned if not torch.equal(tuned[name], aligned[name])}
    assert moved and all(name.startswith("model.layers.1.") for name in moved)
    assert all(torch.equal(base[name], aligned[name]) for name in base if not name.startswith("model.layers.1."))
    counted = [artifacts[stage].manifest.counts["trainable_parameters"] for stage in ("train", "align")]
    assert counted[0] == counted[1]


def test_an_error_of_the_steps_names_the_section_align(start: TinyRun) -> None:
    with pytest.raises(TrainingError, match="the loss is inf") as caught:
        start("align: {loss: ipo, beta: 1.0e-30}")
    assert caught.value.where == "recipe.align"
    assert "lower align.learning_rate" in (caught.value.hint or "")
    assert str(caught.value).startswith("recipe.align: ")


def test_names_that_only_train_has_stay_with_train() -> None:
    from tunesmith.recipe import Train
    from tunesmith.recipe.align import Align
    from tunesmith.stages.section_names import errors_name

    def told(section: Any, where: str | None, hint: str | None) -> Any:
        with pytest.raises(TrainingError) as caught, errors_name(section, "align"):
            raise TrainingError("no", where=where, hint=hint)
        return SimpleNamespace(where=caught.value.where, hint=caught.value.hint)

    found = told(Align(), "recipe.train.max_steps", "set train.max_steps or train.lora_rank; we train on")
    assert found == SimpleNamespace(
        where="recipe.align.max_steps", hint="set align.max_steps or train.lora_rank; we train on"
    )
    assert told(Align(), "recipe.train.method", None) == SimpleNamespace(where="recipe.train.method", hint=None)
    assert told(Train(), None, "lower train.lora_rank").hint == "lower align.lora_rank"
