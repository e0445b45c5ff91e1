"""Rewards: what each is worth by hand, what cannot be scored and why, and the sum of several."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tunesmith.errors import RecipeError
from tunesmith.judging.rewards import REWARDS, build_reward
from tunesmith.judging.rewards.combining import WeightedRewards
from tunesmith.protocols import Attempt, RewardContext
from tunesmith.recipe.rewards import REWARD_OPTIONS, RewardList, RewardOptions, read_reward
from tunesmith.types import Completion, Message, Score, Task, TeacherRequest

SCHEMA = {
    "type": "object",
    "properties": {
        "category": {"enum": ["order", "refund"]},
        "urgent": {"type": "boolean"},
        "reply": {"type": "string"},
    },
    "required": ["category", "reply"],
    "additionalProperties": False,
}
REFERENCE = json.dumps({"category": "order", "urgent": True, "reply": "We look into your order"})
PROMPT = (Message(role="user", content="Where is my order?"),)


class Listed(BaseModel):
    rewards: RewardList


def context(
    *,
    schema: dict[str, Any] | None = SCHEMA,
    files: dict[str, Path] | None = None,
    ask_all: Callable[[Sequence[TeacherRequest]], Sequence[Completion]] | None = None,
    scores: Sequence[float] = (),
) -> RewardContext:
    def nobody(requests: Sequence[TeacherRequest]) -> Sequence[Completion]:
        raise AssertionError("no judge was named")

    return RewardContext(
        task=Task(description="Answer customers of a bicycle shop.", output_schema=schema),
        references=[REFERENCE],
        files=files or {},
        ask_all=ask_all or nobody,
        open_reward_model=lambda folder: lambda attempts: scores,
    )


def scores_of(entry: Any, completions: Sequence[str], ctx: RewardContext | None = None) -> list[Score]:
    reward = build_reward(read_reward(entry), ctx or context())
    return list(reward([Attempt(PROMPT, text, REFERENCE) for text in completions]))


def values_of(entry: Any, completions: Sequence[str], ctx: RewardContext | None = None) -> list[float | None]:
    return [score.value for score in scores_of(entry, completions, ctx)]


def answer(**fields: Any) -> str:
    return json.dumps({"category": "order", "urgent": True, "reply": "Soon"} | fields)


def test_the_schema_gives_one_or_nothing() -> None:
    texts = [answer(), answer(category="other"), "no JSON", answer() + " thanks", json.dumps({"category": "order"})]
    assert values_of("json_schema", texts) == [1, 0, 0, 0, 0]
    with pytest.raises(RecipeError, match=r"ingest\.output_schema"):
        build_reward(read_reward("json_schema"), context(schema=None))


def test_fields_give_the_share_that_equals_the_reference() -> None:
    texts = [answer(), answer(urgent=False), answer(category="refund", urgent=False), "no JSON", "{}"]
    assert values_of("fields", texts) == [1, 0.5, 0, 0, 0]
    assert values_of({"fields": "category"}, texts) == [1, 1, 0, 0, 0]
    assert scores_of("fields", texts)[1].explanation == "wrong: urgent"
    with pytest.raises(RecipeError, match="has a field 'categry'") as caught:
        scores_of({"fields": ["categry"]}, texts)
    assert (caught.value.where, caught.value.hint) == ("recipe.align.rewards", "did you mean 'category'?")


def test_fields_of_an_answer_that_a_stop_string_ended_are_read_as_far_as_it_goes() -> None:
    heads = {
        '{"category": "order", "urgent": true': 1,
        '{"category": "order", "urgent": true, ': 1,
        '{"category": "order", "urgent": false': 0.5,
        '{"category": "order"': 0.5,  # what it has not come to is wrong
        '{"category": "order", "urgent": true, "reply": "We': 0,  # not between two fields
        '{"category": "order" "urgent": true': 0,
        'Sure: {"category": "order", "urgent": true': 0,
        "": 0,
    }
    reward = build_reward(read_reward("fields"), context())
    found = reward([Attempt(PROMPT, head, REFERENCE, ', "reply"') for head in heads])
    assert [score.value for score in found] == list(heads.values())
    assert values_of("fields", list(heads)) == [0] * len(heads), "an answer that nothing ended is no head"
    (score,) = reward([Attempt(PROMPT, answer(), REFERENCE, "\n")])
    assert score.value == 1, "whole before the stop string"


def test_what_has_no_reference_is_unscored_and_not_zero() -> None:
    for entry in ("fields", "exact", "rouge_l"):
        (score,) = build_reward(read_reward(entry), context())([Attempt(PROMPT, answer(), None)])
        assert (score.value, score.explanation) == (None, "the row has no reference answer")
    (score,) = build_reward(read_reward("fields"), context())([Attempt(PROMPT, answer(), '{"note": 1}')])
    assert score.value is None, "a reference without the fields says nothing about the answer"


def test_exact_and_rouge_compare_with_the_reference() -> None:
    assert values_of("exact", [REFERENCE + "\n", answer()]) == [1, 0]
    same, half = answer(reply="We look into your order"), answer(reply="We look into")
    assert values_of("rouge_l", [same, half]) == [1.0, pytest.approx(2 * 3 / (3 + 5), abs=1e-6)]
    assert values_of("rouge_l", [REFERENCE], context(schema=None)) == [1.0]


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(
        "def short(prompt, completion, reference):\n"
        "    assert prompt == [{'role': 'user', 'content': 'Where is my order?'}]\n"
        "    if completion == 'none':\n"
        "        return None\n"
        "    if completion == 'text':\n"
        "        return 'good'\n"
        "    if completion == 'nan':\n"
        "        return float('nan')\n"
        "    return 1 / len(completion)\n\n\n"
        "def right(prompt, completion, reference=None):\n"
        "    return completion == reference\n\n\n"
        "def narrow(completion):\n"
        "    return 1.0\n"
    )
    return path


def python(path: Path, function: str, completions: Sequence[str]) -> list[Score]:
    entry = {"python": f"{path.name}:{function}"}
    assert read_reward(entry).file_names() == [path.name]
    return scores_of(entry, completions, context(files={path.name: path}))


def test_a_function_of_one_s_own_gives_the_reward(own_file: Path) -> None:
    assert [score.value for score in python(own_file, "short", ["ab", "abcd"])] == [0.5, 0.25]
    assert [score.value for score in python(own_file, "right", [REFERENCE, "x"])] == [1.0, 0.0]


def test_an_error_in_one_row_is_that_row_s_failure_with_its_line(own_file: Path) -> None:
    scores = python(own_file, "short", ["ab", "", "none", "text", "nan"])
    assert [score.value for score in scores] == [0.5, None, None, None, None]
    assert [score.explanation for score in scores[1:]] == [
        "the reward function failed: ZeroDivisionError: division by zero (rewards.py:9)",
        "the reward function gave None",
        "the reward function gave str, expected a number",
        "the reward function gave nan",
    ]


def test_a_file_or_function_that_cannot_be_used_is_an_error_of_the_recipe(own_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no function 'shrt'") as caught:
        python(own_file, "shrt", ["x"])
    assert caught.value.hint == "did you mean 'short'?"
    with pytest.raises(RecipeError, match="cannot be called with"):
        python(own_file, "narrow", ["x"])
    with pytest.raises(RecipeError, match="there is no Python file"):
        python(tmp_path / "absent.py", "short", ["x"])
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nraise OSError('no table')\n")
    with pytest.raises(RecipeError, match=r"broken.py cannot be run: OSError: no table \(broken.py:2\)"):
        python(broken, "short", ["x"])
    with pytest.raises(ValueError, match="'function' of the reward 'python'"):
        read_reward({"python": "rewards.short"})


class ScriptedJudge:
    """Answers by the text that is marked; keeps the questions."""

    def __init__(self, answers: dict[str, Completion]) -> None:
        self._answers = answers
        self.asked: list[TeacherRequest] = []

    def __call__(self, requests: Sequence[TeacherRequest]) -> list[Completion]:
        self.asked += requests
        contents = [request.messages[0].content for request in requests]
        return [next(reply for words, reply in self._answers.items() if words in content) for content in contents]


def test_a_judge_s_mark_is_the_expectation_over_digits_or_the_digit_it_wrote() -> None:
    torn = Completion(text="9", top_logprobs=[{"9": math.log(0.5), " 5": math.log(0.3), "x": math.log(0.2)}])
    judge = ScriptedJudge(
        {
            "torn": torn,
            "written": Completion(text="Mark: 3"),
            "ten": Completion(text="10"),
            "mute": Completion(text="Good!"),
            "lost": Completion(text="", finish_reason="error", error="timeout"),
        }
    )
    scores = scores_of("judge", ["torn", "written", "ten", "mute", "lost"], context(ask_all=judge))
    expected = (0.5 * 9 + 0.3 * 5) / 0.8
    assert scores[0].value == pytest.approx((expected - 1) / 8)
    assert [score.value for score in scores[1:]] == [0.25, None, None, None]
    assert scores[3].explanation == "the judge's answer holds no mark: 'Good!'"
    assert scores[4].explanation == "the judge failed: timeout"
    sampling = judge.asked[0].sampling
    assert (sampling.temperature, sampling.top_logprobs) == (0.0, 20)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_judge_is_shown_request_answer_criteria_and_the_reference_unless_it_should_not(language: str) -> None:
    judge = ScriptedJudge({"": Completion(text="5")})
    scores_of({"name": "judge", "language": language}, ["My $ answer"], context(ask_all=judge))
    scores_of(
        {"name": "judge", "language": language, "show_reference": False, "criteria": "Is it polite?"},
        ["My $ answer"],
        context(ask_all=judge),
    )
    first, second = (request.messages[0].content for request in judge.asked)
    for text in ("Where is my order?", "My $ answer", REFERENCE, "Answer customers of a bicycle shop."):
        assert text in first
    assert "Is it polite?" in second and REFERENCE not in second and "bicycle shop" not in second


def test_a_conversation_of_several_turns_is_shown_with_its_roles() -> None:
    judge = ScriptedJudge({"": Completion(text="5")})
    prompt = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        Message(role="user", content="Where is it?"),
    ]
    build_reward(read_reward("judge"), context(ask_all=judge))([Attempt(prompt, "There", None)])
    content = judge.asked[0].messages[0].content
    assert "[system]\nBe brief.\n\n[user]\nHello\n\n[assistant]\nHi\n\n[user]\nWhere is it?" in content


def test_a_reward_model_opens_at_the_first_answer_and_a_score_that_is_no_number_is_unscored(tmp_path: Path) -> None:
    opened: list[Path] = []

    def open_model(folder: Path) -> Callable[[Sequence[Attempt]], Sequence[float]]:
        opened.append(folder)
        return lambda attempts: [1.5, float("nan")][: len(attempts)]

    ctx = RewardContext(Task(), [], {"rm": tmp_path}, lambda requests: [], open_model)
    reward = build_reward(read_reward({"reward_model": "rm"}), ctx)
    assert opened == []
    attempts = [Attempt(PROMPT, "a"), Attempt(PROMPT, "b")]
    assert [score.value for score in reward(attempts)] == [1.5, None]
    reward(attempts)
    assert opened == [tmp_path]


def test_several_rewards_add_up_by_weight_and_one_that_is_missing_leaves_no_total(own_file: Path) -> None:
    entries = [
        "json_schema",
        {"name": "fields", "weight": 2},
        {"name": "python", "function": "r.py:short", "weight": -1},
    ]
    listed = Listed.model_validate({"rewards": entries}).rewards
    rewards = WeightedRewards(listed, context(files={"r.py": own_file}))
    good, half, unscored = answer(), answer(urgent=False), "none"
    found = rewards([Attempt(PROMPT, text, REFERENCE) for text in (good, half, unscored)])
    assert [each.total for each in found] == [
        pytest.approx(1 + 2 - 1 / len(good)),
        pytest.approx(1 + 1 - 1 / len(half)),
        None,
    ]
    assert found[2].parts["json_schema"].value == 0
    assert found[2].explanation == "python: the reward function gave None"
    assert rewards([]) == []


def test_a_reward_that_is_listed_twice_keeps_both_parts(own_file: Path) -> None:
    entries = [{"python": "r.py:short"}, {"python": "r.py:right"}]
    rewards = WeightedRewards(Listed.model_validate({"rewards": entries}).rewards, context(files={"r.py": own_file}))
    (found,) = rewards([Attempt(PROMPT, "abcd", "abcd")])
    assert {name: score.value for name, score in found.parts.items()} == {"python": 0.25, "python_2": 1.0}


def test_every_reward_has_options_and_every_option_a_description() -> None:
    assert set(REWARDS) == set(REWARD_OPTIONS)
    for name in REWARDS:
        assert callable(REWARDS.load(name))
    undescribed = [
        f"{name}.{key}"
        for name, options in REWARD_OPTIONS.items()
        for key, field in options.model_fields.items()
        if not field.description and key != "name"
    ]
    assert undescribed == []


def test_a_wrong_entry_names_the_nearest_reward_or_option() -> None:
    with pytest.raises(ValueError, match="no reward named 'json_shema'; did you mean 'json_schema'"):
        read_reward("json_shema")
    with pytest.raises(ValueError, match="no option 'wieght'; did you mean 'weight'"):
        read_reward({"name": "exact", "wieght": 2})
    with pytest.raises(ValueError, match="no chief option"):
        read_reward({"exact": 2})
    read = read_reward({"judge": "Is it polite?"})
    assert isinstance(read, RewardOptions) and read.model_dump()["criteria"] == "Is it polite?"
