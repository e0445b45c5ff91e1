"""Prompts are data files whose slots are declared; requests depend on their number and nothing else."""

from __future__ import annotations

import pytest

from tunesmith.errors import RecipeError
from tunesmith.generating import GENERATORS
from tunesmith.generating.asking import Pen
from tunesmith.generating.estimate import estimate, max_requests
from tunesmith.generating.examples import Example
from tunesmith.generating.prompt_files import load_prompt, refusal_pattern
from tunesmith.generating.self_instruct import build_request, draw_seeds
from tunesmith.protocols import Price
from tunesmith.recipe import Generate, TeacherSection
from tunesmith.types import Completion, Conversation, Message, Task, TeacherRequest

TEACHER = TeacherSection(kind="scripted", script="s.jsonl")


class Nobody:
    identity = "nobody"

    async def ask(self, request: TeacherRequest) -> Completion:
        raise AssertionError("a request is built without asking")


def pen(options: Generate, task: Task, rng_seed: int) -> Pen:
    return Pen(options, task, rng_seed, load_prompt("self_instruct", options.language), Nobody())


def options(**changes) -> Generate:
    return Generate(teacher=TEACHER, **changes)


def seeds(number: int) -> list[Example]:
    found = []
    for index in range(number):
        asked, answered = f"question {index}", f"answer {index}"
        messages = [Message(role="user", content=asked), Message(role="assistant", content=answered)]
        found.append(Example(asked, answered, Conversation(messages=messages)))
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["self_instruct", "distill"])
def test_every_prompt_file_declares_its_slots_and_leaves_no_mark_behind(name: str, language: str) -> None:
    prompt = load_prompt(name, language)
    full = prompt.fill("user", {slot: f"<{slot}>" for slot in prompt.slots})
    bare = prompt.fill("user", {})
    assert "<schema>" in full
    assert "$" not in full + bare
    assert "===" not in full + bare
    assert "JSON Schema" not in bare
    assert "\n\n\n" not in full + bare
    with pytest.raises(KeyError):
        prompt.fill("user", {"typo": 1})


def test_values_with_dollar_signs_and_braces_are_taken_as_they_are() -> None:
    text = load_prompt("self_instruct", "en").fill("user", {"task": "costs $5 or ${x} {y}", "schema": '{"$ref": "#"}'})
    assert "costs $5 or ${x} {y}" in text
    assert '{"$ref": "#"}' in text


def test_a_request_depends_on_its_number_and_on_nothing_else() -> None:
    many = seeds(20)
    twice = [build_request(pen(options(), Task(), 17), many, 4) for _ in range(2)]
    other_number, other_seed = (
        build_request(pen(options(), Task(), 17), many, 5),
        build_request(pen(options(), Task(), 18), many, 4),
    )
    assert twice[0] == twice[1]
    assert len({request.key("t") for request in (*twice, other_number, other_seed)}) == 3


def test_every_request_is_different_even_with_a_single_seed() -> None:
    keys = {build_request(pen(options(), Task(), 17), seeds(1), number).key("t") for number in range(200)}
    assert len(keys) == 200


def test_seeds_are_drawn_evenly_and_without_repetition() -> None:
    many = seeds(10)
    drawn = [draw_seeds(pen(options(num_seeds_shown=3), Task(), 17), many, number) for number in range(1000)]
    assert all(len({seed.input for seed in group}) == 3 for group in drawn)
    shown = [sum(seed in group for group in drawn) for seed in many]
    assert min(shown) > 240
    assert max(shown) < 360
    assert len(draw_seeds(pen(options(num_seeds_shown=9), Task(), 17), seeds(2), 0)) == 2


def test_the_request_carries_task_schema_and_sampling() -> None:
    chosen = options(temperature=0.8, top_p=0.9, max_tokens=99, rows_per_request=7, language="zh")
    task = Task(description="分类", output_schema={"type": "object"}, system_prompt="规则")
    request = build_request(pen(chosen, task, 17), seeds(3), 0)
    text = request.messages[1].content
    assert "分类" in text
    assert '{"type": "object"}' in text
    assert "规则" in text
    assert "再写 7 个" in text
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (0.8, 0.9, 99)


def test_a_mistyped_generator_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="no generator named 'self_instuct'") as caught:
        GENERATORS.load("self_instuct", where="recipe.generate.generator")
    assert caught.value.hint == "did you mean 'self_instruct'?"


def test_the_refusal_file_compiles() -> None:
    assert refusal_pattern().search("Well, as an AI model I cannot say")
    assert not refusal_pattern().search("Our AI model bike is sold out")


def test_the_estimate_follows_rows_price_and_limits() -> None:
    price = Price(1.0, 2.0)
    small = estimate(options(num_rows=70, rows_per_request=5), 100, 60, price)
    large = estimate(options(num_rows=700, rows_per_request=5), 100, 60, price)
    assert small["requests"] == 20
    assert large["requests"] == 200
    assert small["completion_tokens"] == 20 * 5 * 72
    assert small["usd"] == pytest.approx((small["prompt_tokens"] + 2 * small["completion_tokens"]) / 1e6)
    assert large["usd"] == pytest.approx(10 * small["usd"], rel=0.01)
    assert estimate(options(num_rows=700, budget_usd=0.001), 100, 60, price)["usd"] == 0.001
    assert estimate(options(num_rows=700, max_requests=3), 100, 60, price)["requests"] == 3
    assert estimate(options(max_tokens=16), 100, 60, price)["completion_tokens"] <= 16 * 29
    distilled = estimate(options(generator="distill", num_rows=70), 0, 0, price)
    assert distilled["requests"] == 21


def test_max_requests_without_a_value_is_twenty_times_the_need() -> None:
    assert max_requests(options(num_rows=100, rows_per_request=5)) == 401
    assert max_requests(options(max_requests=7)) == 7
