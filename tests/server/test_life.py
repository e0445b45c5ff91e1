"""Loading, health, counters, draining, death of the engine, and a real process that gets SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import ByteRenderer, RunningServer, ScriptedEngine

from tunesmith.errors import EngineError, StoreError, TemplateMismatch
from tunesmith.server.run import serve
from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings
from waiting import wait_until

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "desk", "messages": [{"role": "user", "content": "say hi"}]}


def test_while_the_model_loads_requests_get_503_and_a_time_to_try_again() -> None:
    class Slow(ScriptedEngine):
        async def start(self) -> None:
            await asyncio.sleep(0.4)

    with RunningServer(Slow(), wait_ready=False) as running:
        health = httpx.get(running.url + "/health")
        assert health.status_code == 503 and health.json()["error"]["code"] == "loading"
        refused = httpx.post(running.url + CHAT, json=ASK)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert running._ready.wait(5)
        assert httpx.get(running.url + "/health").status_code == 200
        assert httpx.post(running.url + CHAT, json=ASK).status_code == 200


def test_a_dead_engine_is_seen_by_health_and_ends_the_server() -> None:
    with RunningServer(ScriptedEngine()) as running:
        url = running.url
        running.engine.alive = False
        health = httpx.get(url + "/health")
        assert health.status_code == 503 and health.json()["error"]["code"] == "engine_dead"
        running._thread.join(10)
        assert not running._thread.is_alive()


def test_what_loading_raises_comes_out_of_serve() -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> None:
            raise EngineError("no memory")

    with pytest.raises(EngineError, match="no memory"):
        serve(ServedModel(id="desk", renderer=ByteRenderer()), Broken(), ServerSettings(port=0))


def test_a_port_in_use_is_an_error_that_names_it(server: RunningServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(StoreError, match=f"cannot listen on 127.0.0.1:{port}"):
        serve(ServedModel(id="desk", renderer=ByteRenderer()), ScriptedEngine(), ServerSettings(port=port))


def test_another_template_than_the_trained_one_is_refused() -> None:
    with pytest.raises(TemplateMismatch, match="trained with eeee"):
        ServedModel(id="desk", renderer=ByteRenderer(), trained_template_digest="e" * 64)
    assert ServedModel(id="desk", renderer=ByteRenderer(), trained_template_digest="d" * 64).names == ("desk",)


def test_draining_lets_answers_end_and_refuses_new_ones() -> None:
    engine = ScriptedEngine(lambda _p, _s: ["x"] * 60, delay=0.01)
    with RunningServer(engine) as running:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(running.url + CHAT, json=ASK))) for _ in range(4)
        ]
        url = running.url
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.running == 4)
        running.loop.call_soon_threadsafe(running.server._drain)
        wait_until(lambda: running.gateway.phase == "draining")
        refused = httpx.post(url + CHAT, json=ASK)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
        for thread in threads:
            thread.join()
        assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["x" * 60] * 4
        running._thread.join(10)
        assert not running._thread.is_alive()


def test_answers_that_outlast_the_timeout_end_with_an_error() -> None:
    engine = ScriptedEngine(lambda _p, _s: ["x"] * 5000, delay=0.01)
    with RunningServer(engine, ServerSettings(drain_timeout_seconds=0.2)) as running:
        lines: list[str] = []

        def read() -> None:
            with httpx.stream("POST", running.url + CHAT, json={**ASK, "stream": True}) as answer:
                lines.extend(line for line in answer.iter_lines() if line)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: engine.running)
        start = time.monotonic()
        running.stop()
        reader.join(10)
        assert time.monotonic() - start < 5
        assert json.loads(lines[-2][6:])["error"]["code"] == "shutting_down" and lines[-1] == "data: [DONE]"


def test_counters_equal_what_the_client_counted() -> None:
    engine = ScriptedEngine()
    with RunningServer(engine) as running:
        prompt_tokens = completion_tokens = 0
        for number in range(10):
            usage = httpx.post(running.url + CHAT, json={**ASK, "n": 1 + number % 3}).json()["usage"]
            prompt_tokens += usage["prompt_tokens"] * (1 + number % 3)  # the engine reads it once per choice
            completion_tokens += usage["completion_tokens"]
        httpx.post(running.url + CHAT, json={**ASK, "max_tokens": 1})
        httpx.post(running.url + CHAT, json={**ASK, "temperature": 9})
        engine.fail_after = 0
        httpx.post(running.url + CHAT, json=ASK)
        text = httpx.get(running.url + "/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    for prefix in ("tunesmith_", "vllm:"):
        label = '{model_name="desk"}'
        assert values[f"{prefix}generation_tokens_total{label}"] == completion_tokens + 1
        assert values[f"{prefix}prompt_tokens_total{label}"] == prompt_tokens + 2 * len("user: say hi\nassistant: ")
        assert values[f"{prefix}num_requests_running{label}"] == 0
        ends = {r: values[f'{prefix}request_success_total{{finished_reason="{r}",model_name="desk"}}'] for r in ("stop", "length", "error", "abort")}  # fmt: skip
        assert ends == {"stop": 19, "length": 1, "error": 1, "abort": 0}
        assert values[f"{prefix}time_to_first_token_seconds_count{label}"] == 20
    assert values['tunesmith_http_responses_total{path="/v1/chat/completions",status="400"}'] == 1
    assert values['tunesmith_http_responses_total{path="/v1/chat/completions",status="500"}'] == 1


def test_one_seed_gives_one_text_alone_and_in_a_crowd(server: RunningServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    body = {"model": "desk", "messages": [{"role": "user", "content": "draw"}], "seed": 11}

    def draw(_: int) -> str:
        return httpx.post(server.url + CHAT, json=body).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(16) as pool:
        assert len({draw(0), *pool.map(draw, range(16))}) == 1


def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    import socket

    engine = ScriptedEngine(lambda _p, _s: ["x" * 20_000] * 4000)
    with RunningServer(engine, ServerSettings(write_timeout_seconds=0.3)) as running:
        host, port = running.url.removeprefix("http://").split(":")
        body = json.dumps({**ASK, "stream": True}).encode()
        with socket.create_connection((host, int(port))) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: engine.cancelled)
        assert engine.cancelled == 1 and engine.produced < 4000


@pytest.mark.parametrize(
    ("number", "words", "twice"), [(signal.SIGTERM, 50, False), (signal.SIGINT, 50, False), (signal.SIGINT, 5000, True)]
)
def test_a_signal_ends_the_process_when_answers_in_flight_have_ended_and_a_second_one_cuts_them(
    number: signal.Signals, words: int, twice: bool
) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from scripted import *\n"
        "from tunesmith.server.run import serve\n"
        f"engine = ScriptedEngine(lambda p, s: ['x'] * {words}, delay=0.01)\n"
        "serve(ServedModel(id='desk', renderer=ByteRenderer()), engine, ServerSettings(port=0),"
        " on_ready=lambda url: print(url, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().decode().strip()
        answers: list[Any] = []

        def ask() -> None:
            answers.append(httpx.post(url + CHAT, json=ASK).json())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: 'num_requests_running{model_name="desk"} 4.0' in httpx.get(url + "/metrics").text)
        process.send_signal(number)
        if twice:
            wait_until(lambda: httpx.post(url + CHAT, json=ASK).status_code == 503)
            process.send_signal(number)
        for thread in threads:
            thread.join(10)
        if twice:
            assert [answer["error"]["code"] for answer in answers] == ["shutting_down"] * 4
        else:
            assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["x" * words] * 4
        assert process.wait(10) == 0
        assert b"Traceback" not in process.stderr.read()
