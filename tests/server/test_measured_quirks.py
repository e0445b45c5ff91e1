"""Ways in which the bare llama.cpp server was measured not to be good enough; the gateway gets each of them right."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from scripted import RunningServer, ScriptedEngine

from waiting import wait_until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ASK: dict[str, Any] = {"model": "desk", "messages": [{"role": "user", "content": "say hi"}]}
COMPLETE: dict[str, Any] = {"model": "desk", "prompt": "say hi"}


def _chat(**changes: Any) -> Callable[[httpx.Client], httpx.Response]:
    return lambda http: http.post(CHAT, json={**ASK, **changes})


def _complete(**changes: Any) -> Callable[[httpx.Client], httpx.Response]:
    return lambda http: http.post(COMPLETIONS, json={**COMPLETE, **changes})


def _raw(body: bytes, kind: str = "application/json") -> Callable[[httpx.Client], httpx.Response]:
    return lambda http: http.post(CHAT, content=body, headers={"content-type": kind})


DEEP = b'{"model":"desk","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ASK_BYTES = json.dumps(ASK).encode()

REFUSED: dict[str, tuple[Callable[[httpx.Client], httpx.Response], int, str | None, str]] = {
    "temperature 3 was accepted": (_chat(temperature=3), 400, "temperature", "invalid_value"),
    "temperature -3 was accepted": (_chat(temperature=-3), 400, "temperature", "invalid_value"),
    "no messages were accepted": (_chat(messages=[]), 400, "messages", "invalid_value"),
    "role wizard was accepted": (
        _chat(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0.role", "invalid_value",
    ),
    "an unknown model was accepted": (_chat(model="gpt-9"), 404, "model", "model_not_found"),
    "five stops were accepted": (_chat(stop=list("abcde")), 400, "stop", "invalid_value"),
    "50 top_logprobs were accepted": (_chat(logprobs=True, top_logprobs=50), 400, "top_logprobs", "invalid_value"),
    "a form was accepted": (_raw(ASK_BYTES, "application/x-www-form-urlencoded"), 415, None, "unsupported_media_type"),
    "plain text was accepted": (_raw(ASK_BYTES, "text/plain"), 415, None, "unsupported_media_type"),
    "max_tokens 2.7 was accepted": (_chat(max_tokens=2.7), 400, "max_tokens", "invalid_value"),
    "max_tokens 0 gave one token": (_chat(max_tokens=0), 400, "max_tokens", "invalid_value"),
    "repeated keys were accepted": (_raw(ASK_BYTES[:-1] + b',"model":"x"}'), 400, "model", "invalid_json"),
    "a byte order mark was accepted": (_raw(b"\xef\xbb\xbf" + ASK_BYTES), 400, None, "invalid_json"),
    "best_of was ignored": (_complete(best_of=3), 400, "best_of", "unsupported_parameter"),
    "echo with logprobs was ignored": (_complete(echo=True, logprobs=1), 400, "echo", "unsupported_parameter"),
    "PUT gave 404": (lambda http: http.put(CHAT, json=ASK), 405, None, "method_not_allowed"),
    "overlong prompts named no parameter": (
        _chat(messages=[{"role": "user", "content": "x" * 5000}]), 400, "messages", "context_length_exceeded",
    ),
    "a body beyond the limit reset the connection": (_raw(b" " * (9 << 20)), 413, None, "request_too_large"),
    "100,000 levels went to the engine": (_raw(DEEP), 400, None, "invalid_json"),
    "a schema that cannot be enforced was ignored": (
        _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}),
        400, "response_format", "invalid_value",
    ),
    "a foreign Host was served": (
        lambda http: http.post(CHAT, json=ASK, headers={"host": "evil.example"}), 403, None, "host_not_allowed",
    ),
    "a foreign Origin was reflected": (
        lambda http: http.post(CHAT, json=ASK, headers={"origin": "https://evil.example"}), 403, None,
        "origin_not_allowed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("quirk", REFUSED)
def test_the_gateway_refuses_by_name_where(quirk: str, http: httpx.Client) -> None:
    send, status, param, code = REFUSED[quirk]
    answer = send(http)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and (error["param"], error["code"]) == (param, code)
    assert len(answer.content) <= 4096 and "access-control-allow-origin" not in answer.headers


def test_the_first_chunk_has_a_role_even_when_the_first_token_is_half_a_character() -> None:
    with RunningServer(ScriptedEngine(lambda _p, _s: [b"\xf0\x9f", b"\x8e\x89"])) as running:
        text = httpx.post(f"{running.url}{CHAT}", json={**ASK, "stream": True}).text
    first, second = (json.loads(line[6:]) for line in text.split("\n\n")[:2])
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert second["choices"][0]["delta"] == {"content": "🎉"}


def test_completion_ids_start_with_their_own_prefix(http: httpx.Client) -> None:
    assert _complete()(http).json()["id"].startswith("cmpl-") and _chat()(http).json()["id"].startswith("chatcmpl-")


def test_n_beyond_the_slots_is_answered_and_usage_counts_every_choice(http: httpx.Client) -> None:
    answer = _chat(n=9)(http).json()  # 4 slots
    assert len(answer["choices"]) == 9 and answer["usage"]["completion_tokens"] == 18
    assert _chat(n=17)(http).json()["error"]["param"] == "n"


def test_the_error_code_is_a_string_or_null_and_401_is_an_object_with_a_challenge() -> None:
    from tunesmith.server.auth import KeyRing
    from tunesmith.server.responses import RequestError

    ring = KeyRing(["correct-horse"])
    for header in (None, "Bearer", "Basic abc", "Bearer wrong-horse-battery"):
        with pytest.raises(RequestError) as refused:
            ring.identify(header)
        assert refused.value.status == 401 and refused.value.body()["error"]["code"] == "invalid_api_key"
        assert refused.value.headers["WWW-Authenticate"].startswith("Bearer")
    assert ring.identify("Bearer correct-horse") == ring.identify("bearer  correct-horse")
    assert "correct" not in repr(ring)


@pytest.mark.parametrize("stream", [False, True])
def test_a_dropped_request_is_cancelled_in_both_modes(stream: bool) -> None:
    engine = ScriptedEngine(lambda _p, _s: ["x"] * 2000, delay=0.005)
    with RunningServer(engine) as running:
        for _ in range(8):
            with pytest.raises(httpx.TimeoutException):  # noqa: SIM117 - the client is dropped inside
                with httpx.Client(timeout=0.3) as client:
                    client.post(f"{running.url}{CHAT}", json={**ASK, "stream": stream}) if not stream else _read(
                        client, running.url
                    )
        wait_until(lambda: not engine.running and not running.gateway.admission.waiting)
        assert engine.cancelled == 8 and engine.produced < 0.1 * 8 * 2000
        assert running.gateway.metrics.answers["abort"] == 8


def _read(client: httpx.Client, url: str) -> None:
    import time

    start = time.monotonic()
    with client.stream("POST", f"{url}{CHAT}", json={**ASK, "stream": True}) as answer:
        for _ in answer.iter_raw():
            if time.monotonic() - start > 0.3:
                raise httpx.ReadTimeout("left")


def test_a_full_queue_is_refused_with_the_time_to_try_again() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from tunesmith.server.settings import ServerSettings

    engine = ScriptedEngine(lambda _p, _s: ["x"] * 20, num_slots=2, delay=0.01)
    with RunningServer(engine, ServerSettings(max_queue=3)) as running, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{running.url}{CHAT}", json=ASK, timeout=20), range(16)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 5 and engine.most_running == 2
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "queue_full"
        assert httpx.post(f"{running.url}{CHAT}", json=ASK).status_code == 200
