"""kill -9 at twenty random moments of a run, every stage hit: the resumed run ends in the same artifacts, and no answer
that was written down is asked for again. The teacher is a real local server that speaks the OpenAI protocol."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from english_words import WORDS
from tunesmith.events import StageFinished, StageStarted, read_events
from tunesmith.store import Run, list_runs

pytestmark = pytest.mark.e2e

NUM_KILLS = 20
CONCURRENCY = 4


class TeacherServer:
    """Answers chat completions with rows that are a function of the request, after a short wait; counts every request."""

    def __init__(self) -> None:
        outer = self
        self.asked: Counter[str] = Counter()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = json.loads(body)
                key = json.dumps(request["messages"], sort_keys=True)
                outer.asked[key] += 1
                time.sleep(0.15)
                reply = outer.answer(key)
                answer = {
                    "id": "x",
                    "object": "chat.completion",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 50},
                }
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a killed client hangs up
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, key: str) -> str:
        draw = random.Random(key)
        rows = [{"input": " ".join(draw.sample(WORDS, 6)), "output": " ".join(draw.sample(WORDS, 4))} for _ in range(2)]
        return "\n".join(json.dumps(row) for row in rows)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def teacher():
    server = TeacherServer()
    yield server
    server.close()


def write_recipe(folder: Path, model: Path, teacher: TeacherServer) -> Path:
    folder.mkdir()
    rows = [
        {"question": f"What is {a} next to {b}?", "response": f"{a.title()} stands beside {b}, number {i}."}
        for i, (a, b) in enumerate(zip(WORDS, reversed(WORDS), strict=True))
    ]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "killed",
        "base_model": str(model),
        "ingest": {"task": "Answer questions about words.", "files": ["seeds.jsonl"], "test_fraction": 0.2},
        "generate": {
            "teacher": {"base_url": teacher.url, "model": "fake", "api_key_env": None, "price_usd_per_mtok": [1, 1]},
            "num_rows": 24,
            "rows_per_request": 2,
        },
        "train": {"num_epochs": 3, "lora_rank": 4, "learning_rate": 1e-3},
        "tokenize": {"pack_length": 256},
        "evaluate": {"max_tokens": 12},
        "export": {"formats": ["safetensors", "gguf-f16"], "num_check_prompts": 2},
        "runtime": {
            "checkpoint_every_steps": 2,
            "teacher_concurrency": CONCURRENCY,
            "precision": "fp32",
            "num_threads": 1,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path, root: Path) -> subprocess.Popen[bytes]:
    log = (root.parent / "output.txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith.cli.main", "run", str(recipe), "--root", str(root)],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "TUNESMITH_DEBUG": "1"},
    )


def running_stage(root: Path) -> str | None:
    """The stage that has started and not finished in the newest run."""
    runs = list_runs(root)
    if not runs or not runs[-1].events_path.exists():
        return None
    current = None
    for event in read_events(runs[-1].events_path):
        if isinstance(event, StageStarted):
            current = event.stage
        elif isinstance(event, StageFinished) and event.stage == current:
            current = None
    return current


def recorded_requests(root: Path) -> set[str]:
    """The message lists of every answer on disk, torn lines left out."""
    found: set[str] = set()
    for path in [*root.glob("partial/generate-*/answers.jsonl"), *root.glob("artifacts/generate-*/answers.jsonl")]:
        for line in path.read_bytes().splitlines(keepends=True):
            entry = json.loads(line) if line.endswith(b"\n") else {}
            if "request" in entry:  # an answer; lines without one only say that a request was sent
                messages = entry["request"]["messages"]
                found.add(json.dumps([{"role": m["role"], "content": m["content"]} for m in messages], sort_keys=True))
    return found


def digests(run: Run) -> dict[str, str]:
    return {stage: artifact.manifest.digest for stage, artifact in run.artifacts().items()}


def kill_when(process: subprocess.Popen[bytes], root: Path, stage: str, delay: float) -> str | None:
    """Wait until `stage` runs (or the process ends), then `delay` seconds, then kill -9. Returns the stage that was hit."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if running_stage(root) == stage:
            time.sleep(delay)
            break
        time.sleep(0.005)
    hit = running_stage(root) if process.poll() is None else None
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()
    return hit


def test_twenty_kills_change_nothing_and_pay_for_nothing_twice(
    tmp_path: Path, teacher: TeacherServer, tiny_model_dir: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe", tiny_model_dir, teacher)
    assert start(recipe, tmp_path / "straight").wait(300) == 0, (tmp_path / "output.txt").read_text()[-3000:]
    straight = list_runs(tmp_path / "straight")[-1]
    asked_straight = set(teacher.asked)
    teacher.asked.clear()

    draw = random.Random(7)
    stages = ["ingest", "generate", "curate", "base_model", "tokenize", "train", "evaluate", "export"]
    plan = sorted(stages * 2 + ["generate", "train", "evaluate", "export"], key=stages.index)
    assert len(plan) == NUM_KILLS
    root, hit, paid = tmp_path / "killed", [], set()
    for stage in plan:
        known = recorded_requests(root)
        before = Counter(teacher.asked)
        longest = {"generate": 0.5, "train": 0.8, "evaluate": 0.5, "export": 0.8}.get(stage, 0.01)
        hit.append(kill_when(start(recipe, root), root, stage, draw.uniform(0, longest)))
        again = {key for key in known if teacher.asked[key] > before[key]}
        assert again == set(), "an answer that was written down was asked for again"
        paid |= known
    assert start(recipe, root).wait(300) == 0, (tmp_path / "output.txt").read_text()[-3000:]

    resumed = list_runs(root)[-1]
    assert digests(resumed) == digests(straight)
    kills_in_generate = sum(1 for stage in hit if stage == "generate")
    repeated = sum(count - 1 for count in teacher.asked.values())
    assert repeated <= kills_in_generate * CONCURRENCY, "only answers in flight at the kill may be asked again"
    assert set(teacher.asked) >= asked_straight
    assert {stage for stage in hit if stage} >= {"generate", "train", "evaluate", "export"}
    assert sum(1 for stage in hit if stage) >= NUM_KILLS // 2
