"""Filters that ask a judge, through the stage's tools: a local endpoint, the scripted teacher, the embedded model."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from filelock import FileLock

from teachers.fake_openai import FakeOpenAI, Fault, say, serving
from tunesmith.data.filters import build_filter
from tunesmith.errors import BudgetExceeded
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context, SetFilter, Verdict
from tunesmith.recipe import Curate, Runtime
from tunesmith.stages.filter_context import FilterTools
from tunesmith.types import Conversation, Message, Task


@pytest.fixture
def ctx(sink: Any, tmp_path: Path) -> Context:
    return Context(events=sink, runtime=Runtime(), ledgers=tmp_path / "ledgers")


def row(asked: str, answered: str = "It is so.") -> Conversation:
    return Conversation(messages=[Message(role="user", content=asked), Message(role="assistant", content=answered)])


def rows_of(*names: str) -> list[Conversation]:
    return [row(f"What about {name}?") for name in names]


def judged_by(fake: FakeOpenAI, **fields: Any) -> dict[str, Any]:
    teacher = {"model": "m", "base_url": fake.base_url, "api_key_env": None, "price_usd_per_mtok": [1.0, 2.0]}
    return {"teacher": teacher, "filters": ["alpagasus"], **fields}


def judge(
    out: Path, ctx: Context, given: Sequence[Conversation], **fields: Any
) -> tuple[Sequence[Verdict], dict[str, Any]]:
    """Verdicts of the section's first filter, and the facts."""
    section = Curate.model_validate(fields)
    files = {name: Path(name) for name in section.file_names()}
    out.mkdir(parents=True, exist_ok=True)
    with FilterTools(section, files, out, ctx) as tools:
        built = build_filter(section.filters[0], tools.context(Task()))
        assert isinstance(built, SetFilter)
        return built.judge_all(given), tools.facts()


def score_of(verdict: Verdict, name: str) -> float | None:
    assert isinstance(verdict, Conversation)
    return verdict.metadata["scores"][name]


def test_another_threshold_another_option_and_one_more_row_ask_only_what_is_new(tmp_path: Path, ctx: Context) -> None:
    with serving(answer=lambda body: say("4\nGood.")) as fake:
        section = judged_by(fake)
        first, facts = judge(tmp_path / "1", ctx, rows_of("a", "b"), **section)
        assert fake.num_asked == 2
        section["filters"] = [{"name": "alpagasus", "min_score": 3}]
        second, _ = judge(tmp_path / "2", ctx, rows_of("a", "b", "c"), **section, min_prompt_words=2, blacklist=["x"])
        assert fake.num_asked == 3
        _, repeated = judge(tmp_path / "3", ctx, rows_of("a", "b"), **judged_by(fake))
        assert fake.num_asked == 3
    assert [isinstance(verdict, Conversation) for verdict in (*first, *second)] == [False, False, True, True, True]
    assert repeated == facts
    kept = [(tmp_path / name / "answers.jsonl").read_bytes() for name in "123"]
    assert kept[0] == kept[2], "an artifact holds the answers it used and no others"
    assert [len(data.splitlines()) for data in kept] == [2, 3, 2]
    assert (tmp_path / "2/logs/answer_times.jsonl").read_bytes().count(b"\n") == 3


def test_the_budget_counts_this_order_from_its_beginning_and_no_other(tmp_path: Path, ctx: Context) -> None:
    with serving(answer=lambda body: say("5")) as fake:
        worst = 3 * 0.00014  # of three questions, from above: 100 prompt and 20 completion tokens are billed for each
        _, first = judge(tmp_path / "1", ctx, rows_of("a", "b", "c"), **judged_by(fake, budget_usd=0.01))
        assert first["cost_usd"] == pytest.approx(worst)
        _, second = judge(tmp_path / "2", ctx, rows_of("d"), **judged_by(fake, budget_usd=0.00121))
        assert second["cost_usd"] == pytest.approx(0.00014)
        # the same order again with more rows, as after a kill: what it spent before counts
        spent = [f"{n}" for n in range(40)]
        with pytest.raises(BudgetExceeded):
            judge(tmp_path / "2", ctx, rows_of(*spent), **judged_by(fake, budget_usd=0.00121))
        num_asked = fake.num_asked
        with pytest.raises(BudgetExceeded):
            judge(tmp_path / "2", ctx, rows_of(*spent), **judged_by(fake, budget_usd=0.00121))
        assert fake.num_asked == num_asked
    billed = sum(prompt + 2 * completion for prompt, completion in fake.billed_tokens[3:]) / 1e6
    assert billed <= 0.00121


def test_a_second_run_waits_for_the_first_and_uses_its_answers(tmp_path: Path, ctx: Context, sink: Any) -> None:
    with serving(answer=lambda body: say("5")) as fake:
        judge(tmp_path / "1", ctx, rows_of("a"), **judged_by(fake))
        (folder,) = (tmp_path / "ledgers").iterdir()
        held = threading.Event()

        def other_run() -> None:
            with FileLock(folder / "lock"):
                held.set()
                time.sleep(0.3)

        thread = threading.Thread(target=other_run)
        thread.start()
        held.wait(10)
        _, facts = judge(tmp_path / "2", ctx, rows_of("a"), **judged_by(fake))
        thread.join()
    assert (fake.num_asked, facts["num_requests"]) == (1, 1)
    assert any("another run asks the same judge" in event.message for event in sink.events if isinstance(event, Note))


def test_progress_is_told_and_ends_with_all(tmp_path: Path, ctx: Context, sink: Any) -> None:
    with serving(answer=lambda body: say("5")) as fake:
        judge(tmp_path / "1", ctx, rows_of(*map(str, range(30))), **judged_by(fake))
    shown = [event for event in sink.events if isinstance(event, Progress)]
    assert 1 <= len(shown) < 10
    assert (shown[-1].task, shown[-1].done, shown[-1].total) == ("judge", 30, 30)


def logprobs_of(*places: dict[str, float]) -> dict[str, Any]:
    """In OpenAI's form; places: text -> probability."""
    return {
        "content": [
            {
                "token": next(iter(place)),
                "logprob": math.log(next(iter(place.values()))),
                "top_logprobs": [{"token": text, "logprob": math.log(value)} for text, value in place.items()],
            }
            for place in places
        ]
    }


def with_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """Complexity is 3 or 5, as likely; quality surely 4, after a line break."""
    if "How hard" in body["messages"][0]["content"]:
        text, logprobs = "3", logprobs_of({"3": 0.45, " 5": 0.45, "x": 0.1})
    else:
        text, logprobs = "\n4", logprobs_of({"\n": 0.9, "2": 0.05}, {"4": 0.99})
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return say(text, choices=[{**choice, "logprobs": logprobs}])


def test_deita_is_the_expectation_over_digits_where_the_endpoint_gives_log_probabilities(
    tmp_path: Path, ctx: Context
) -> None:
    with serving(answer=with_logprobs) as fake:
        verdicts, _ = judge(tmp_path / "1", ctx, rows_of("a"), **judged_by(fake, filters=["deita"]))
        again, _ = judge(tmp_path / "2", ctx, rows_of("a"), **judged_by(fake, filters=["deita"]))
    assert [(body["logprobs"], body["top_logprobs"]) for body in fake.asked] == [(True, 20)] * 2
    assert score_of(verdicts[0], "deita") == score_of(again[0], "deita") == pytest.approx(4.0 * 4.0)
    stored = [orjson.loads(line) for line in (tmp_path / "1/answers.jsonl").read_bytes().splitlines()]
    assert stored[0]["completion"]["top_logprobs"][0] == pytest.approx(
        {"3": math.log(0.45), " 5": math.log(0.45), "x": math.log(0.1)}
    )


def test_an_endpoint_without_log_probabilities_is_noted_and_the_digit_is_read(
    tmp_path: Path, ctx: Context, sink: Any
) -> None:
    refusal = Fault("status", 400, json.dumps({"error": {"message": "logprobs is not supported for this model"}}))
    replies = {"How hard": "I say 3.", "a?": "no idea", "b?": " 4"}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = body["messages"][0]["content"]
        return say(next(reply for words, reply in replies.items() if words in asked))

    with serving([refusal], answer=answer) as fake:
        section = judged_by(fake, filters=[{"name": "deita", "unscored": "keep"}])
        runtime = Runtime(teacher_concurrency=1)
        verdicts, _ = judge(tmp_path / "1", Context(ctx.events, runtime, ctx.ledgers), rows_of("a", "b"), **section)
    assert "logprobs" in fake.asked[0] and all("logprobs" not in body for body in fake.asked[1:])
    assert score_of(verdicts[0], "deita") is None, "an answer that cannot be read is null"
    assert score_of(verdicts[1], "deita") == 12.0
    notes = [event.message for event in sink.events if isinstance(event, Note) and "log-prob" in event.message]
    assert notes == [f"the endpoint {fake.base_url} gives no log-probabilities: answers are read from their text alone"]


def test_the_scripted_teacher_gives_log_probabilities_where_its_script_has_them(tmp_path: Path, ctx: Context) -> None:
    sure, torn = math.log(1.0), math.log(0.5)
    lines = [
        {"match": "How hard", "text": "1", "top_logprobs": [{"1": torn, "2": torn}]},
        {"match": "How good|quality", "text": "6", "top_logprobs": [{"6": sure}]},
    ]
    script = tmp_path / "judge.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    teacher = {"kind": "scripted", "script": str(script)}
    verdicts, _ = judge(tmp_path / "1", ctx, rows_of("a"), teacher=teacher, filters=["deita"])
    assert score_of(verdicts[0], "deita") == 9.0


@pytest.mark.real
def test_the_embedded_model_judges_by_log_probabilities(tmp_path: Path, ctx: Context, smollm2: Any) -> None:
    teacher = {"kind": "local", "model": "smollm2-135m", "context_length": 1024}
    given = [row("What is 2 + 2?", "4")]
    verdicts, facts = judge(
        tmp_path / "1", ctx, given, teacher=teacher, filters=[{"name": "deita", "unscored": "keep"}]
    )
    answers = [orjson.loads(line)["completion"] for line in (tmp_path / "1/answers.jsonl").read_bytes().splitlines()]
    assert facts["num_requests"] == len(answers) == 2
    for answer in answers:
        places = answer["top_logprobs"]
        assert 1 <= len(places) <= answer["usage"]["completion_tokens"]
        assert all(15 <= len(place) <= 20 for place in places)
        assert all(0 < sum(map(math.exp, place.values())) <= 1.001 for place in places)
        assert answer["text"].startswith(max(places[0], key=lambda text: places[0][text])), "greedy takes the likeliest"
    scores = [score_of(verdict, "deita") for verdict in verdicts]
    known = [score for score in scores if score is not None]
    assert known and all(1 <= score <= 36 and score != int(score) for score in known)
