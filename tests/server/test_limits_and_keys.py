"""Keys, hosts, origins, rates, body limits: what is refused, with which status, and what never is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import RunningServer, ScriptedEngine

from tunesmith.errors import RecipeError, StoreError
from tunesmith.server.auth import Doorman, host_name, load_keys
from tunesmith.server.body import parse_object
from tunesmith.server.limits import Admission, RateLimiter
from tunesmith.server.responses import RequestError, clean
from tunesmith.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "desk", "messages": [{"role": "user", "content": "say hi"}]}


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    settings = ServerSettings(
        api_key_envs=("DESK_KEY_ONE", "DESK_KEY_TWO"), cors_origins=("https://app.example",), requests_per_minute=5,
        allowed_hosts=("desk.example",),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for number, name in enumerate(settings.api_key_envs, 1):
            patch.setenv(name, f"correct-horse-{number}")
        with RunningServer(ScriptedEngine(), settings) as running:
            yield running


def _with(key: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **headers}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/desk", "/metrics"])
@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong-horse"}, {"authorization": "Basic eDp5"}])
def test_everything_of_the_api_needs_a_key(guarded: RunningServer, path: str, header: dict[str, str]) -> None:
    answer = httpx.get(guarded.url + path, headers=header)
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["error"]["code"] == "invalid_api_key" and "horse" not in answer.text
    assert httpx.get(guarded.url + path, headers=_with("correct-horse-2")).status_code == 200


def test_health_and_the_page_are_open(guarded: RunningServer) -> None:
    assert httpx.get(guarded.url + "/health").json() == {"status": "ok"}
    page = httpx.get(guarded.url + "/")
    assert page.status_code == 200 and "'unsafe-inline'" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_key_that_asks_too_often_gets_429_and_others_go_on(guarded: RunningServer) -> None:
    statuses = [
        httpx.post(guarded.url + CHAT, json=ASK, headers=_with("correct-horse-1")).status_code for _ in range(7)
    ]
    assert statuses == [200] * 5 + [429] * 2
    refused = httpx.post(guarded.url + CHAT, json=ASK, headers=_with("correct-horse-1"))
    assert 1 <= int(refused.headers["retry-after"]) <= 12 and refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert httpx.post(guarded.url + CHAT, json=ASK, headers=_with("correct-horse-2")).status_code == 200


def test_only_allowed_origins_may_call_and_read(guarded: RunningServer) -> None:
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    allowed = httpx.options(guarded.url + CHAT, headers={"origin": "https://app.example", **preflight})
    assert allowed.status_code == 204 and allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-credentials" not in allowed.headers
    for origin in ("https://evil.example", "null", "https://app.example.evil.example", "http://app.example"):
        foreign = httpx.options(guarded.url + CHAT, headers={"origin": origin, **preflight})
        assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers
        posted = httpx.post(guarded.url + CHAT, json=ASK, headers=_with("correct-horse-2", origin=origin))
        assert posted.status_code == 403 and posted.json()["error"]["code"] == "origin_not_allowed"
    answer = httpx.get(guarded.url + "/v1/models", headers=_with("correct-horse-2", origin="https://app.example"))
    assert answer.headers["access-control-allow-origin"] == "https://app.example" and "Origin" in answer.headers["vary"]


def test_a_page_of_another_site_without_an_origin_header_is_refused(http: httpx.Client) -> None:
    assert http.post(CHAT, json=ASK, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert http.post(CHAT, json=ASK, headers={"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.com", "127.0.0.1.evil.com", "", "192.168.1.9:18888"])
def test_foreign_host_names_are_refused_on_every_path(guarded: RunningServer, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        answer = httpx.get(guarded.url + path, headers={"host": host})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"


def test_local_and_configured_host_names_are_served(guarded: RunningServer) -> None:
    for host in ("localhost:18888", "127.0.0.1", "[::1]:18888", "DESK.example", "desk.example:443"):
        assert httpx.get(guarded.url + "/health", headers={"host": host}).status_code == 200, host


def test_a_public_address_takes_any_address_as_host_but_no_foreign_name() -> None:
    doorman = Doorman(ServerSettings(host="0.0.0.0"))
    doorman.check_host("192.168.1.9:18888")
    with pytest.raises(RequestError):
        doorman.check_host("rebound.evil.example")
    assert [host_name(host) for host in ("a:1", "[::1]:5", "::1", "A")] == ["a", "::1", "::1", "a"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.9", "::", "my-machine"])
def test_listening_beyond_this_machine_needs_a_key(host: str) -> None:
    with pytest.raises(RecipeError, match="without an API key"):
        load_keys(ServerSettings(host=host))
    assert load_keys(ServerSettings(host=host, api_key_envs=("K",)), {"K": "long-enough"})


def test_keys_come_from_variables_and_files_and_never_show(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# desk\ncorrect-horse-3\n\n")
    ring = load_keys(ServerSettings(api_key_file=file))
    assert ring.identify("Bearer correct-horse-3") and "correct" not in repr(vars(ring))
    for settings, error in (
        (ServerSettings(api_key_envs=("NOT_SET",)), RecipeError),
        (ServerSettings(api_key_file=tmp_path / "absent"), StoreError),
    ):
        with pytest.raises(error):
            load_keys(settings, {})
    with pytest.raises(RecipeError, match="shorter than"):
        load_keys(ServerSettings(api_key_envs=("K",)), {"K": "short"})


def test_the_rate_refills_evenly() -> None:
    now = [0.0]
    limiter = RateLimiter(60, clock=lambda: now[0])
    for _ in range(60):
        limiter.take("a")
    with pytest.raises(RequestError) as refused:
        limiter.take("a")
    assert refused.value.headers["Retry-After"] == "1"
    now[0] = 1.01
    limiter.take("a")
    with pytest.raises(RequestError):
        limiter.take("a")


async def test_admission_counts_slots_and_queue() -> None:
    admission = Admission(num_slots=2, max_queue=1)
    admission.claim(3)
    with pytest.raises(RequestError) as refused:
        admission.claim(1)
    assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
    async with admission.slot():
        assert (admission.running, admission.waiting) == (1, 2)
    admission.release(3)
    admission.claim(9)  # more choices than room go through one after another when nobody else is there
    assert admission.waiting == 9


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "is a list"),
        (b'"x"', "is a str"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"x": {"b": 1, "b": 2}}', "'b' appears twice"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe{\x00}\x00", "byte order mark"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b"[" * 1_000_000, "deeper than 64"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
    ],
)
def test_a_body_two_parsers_could_read_differently_is_refused(raw: bytes, found: str) -> None:
    with pytest.raises(RequestError, match=found) as refused:
        parse_object(raw, 64)
    assert refused.value.status == 400 and refused.value.code == "invalid_json"


def test_brackets_inside_strings_are_no_depth() -> None:
    assert parse_object(json.dumps({"a": "[" * 999 + '\\"' + "{" * 999}).encode(), 4)["a"].startswith("[[[")


def test_a_streamed_body_beyond_the_limit_is_refused_while_it_arrives(server: RunningServer) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 65536

    answer = httpx.post(server.url + CHAT, content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


def test_compressed_bodies_and_large_headers_are_refused(http: httpx.Client) -> None:
    packed = http.post(CHAT, content=b"x", headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert packed.status_code == 415
    many = {f"x-{n}": "y" * 700 for n in range(100)}
    refused = http.get("/health", headers=many)
    assert refused.status_code == 431 and refused.json()["error"]["code"] == "header_too_large"


PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown parameter": ({"tempurature": 1}, "tempurature"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "a tool choice": ({"tool_choice": "required"}, "tool_choice"),
    "a bias": ({"logit_bias": {"5": 1}}, "logit_bias"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
    "storing": ({"store": True}, "store"),
    "reasoning effort": ({"reasoning_effort": "high"}, "reasoning_effort"),
    "a truth value as a number": ({"temperature": True}, "temperature"),
    "a text as a number": ({"max_tokens": "5"}, "max_tokens"),
    "a negative limit": ({"max_tokens": -1}, "max_tokens"),
    "more than fits": ({"max_tokens": 5000}, "max_tokens"),
    "more than fits, by the new name": ({"max_completion_tokens": 5000}, "max_completion_tokens"),
    "two limits": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    "no choice": ({"n": 0}, "n"),
    "an empty stop": ({"stop": [""]}, "stop.0"),
    "stream options without a stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    "a tool message": ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a message that is none": ({"messages": ["hi"]}, "messages.0"),
    "what the template refuses": ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
    "a format without its schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}},
        "response_format",
    ),
    "a schema from elsewhere": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}}},
        "response_format",
    ),
    "a huge schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["y" * 70_000]}}}},
        "response_format",
    ),
    "a long unknown name": ({"x" * 5000: 1}, "x" * 79),
    "a seed beyond 64 bits": ({"seed": 2**70}, "seed"),
}  # fmt: skip


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_parameter_acts_or_is_refused_by_its_name(what: str, http: httpx.Client) -> None:
    changes, param = PARAMETERS[what]
    answer = http.post(CHAT, json={**ASK, **changes})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"].startswith(param), answer.text
    assert isinstance(error["code"], str) and len(answer.content) <= 4096
    assert "x" * 201 not in answer.text and "y" * 201 not in answer.text


def test_harmless_parameters_and_nulls_are_accepted(http: httpx.Client) -> None:
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "parallel_tool_calls": True, "tools": [], "tool_choice": "none", "logit_bias": {},
        "stop": None, "temperature": None, "max_tokens": None, "response_format": {"type": "text"}, "functions": None,
        "modalities": ["text"], "stream_options": None, "top_p": 0, "n": 1, "logprobs": False,
    }  # fmt: skip
    answer = http.post(CHAT, json={**ASK, **harmless})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/../../etc/passwd", 404, "unknown_url"),
        ("GET", "/chat.css/", 404, "unknown_url"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_wrong_paths_and_methods_are_openai_errors(
    method: str, path: str, status: int, code: str, http: httpx.Client
) -> None:
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"]


def test_messages_lose_paths_and_length() -> None:
    shown = clean("cannot open /root/.cache/tunesmith/model.gguf or C:\\Users\\me\\x.gguf\n" + "z" * 5000)
    assert "tunesmith" not in shown and "Users" not in shown and len(shown) <= 1000
    assert clean("use temperature/top_p and 1/2") == "use temperature/top_p and 1/2"


def test_a_picture_is_refused_as_what_it_is(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    error = http.post(CHAT, json={**ASK, "messages": [{"role": "user", "content": parts}]}).json()["error"]
    assert error["param"] == "messages.0.content.1"
    assert "parts of type 'image_url' are not supported" in error["message"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "expected text, or a list, found 5"),
        ({"messages": []}, "messages", "expected at least 1 items, found []"),
        ({"temperature": 3}, "temperature", "expected at most 2"),
        ({"n": "x"}, "n", "expected a whole number, found 'x'"),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages.0.y", "unknown parameter: 'messages.0.y'"),
    ],
)
def test_a_refusal_says_what_was_expected(
    changes: dict[str, Any], param: str, message: str, http: httpx.Client
) -> None:
    error = http.post(CHAT, json={**ASK, **changes}).json()["error"]
    assert error["param"] == param and message in error["message"]


def test_every_file_the_page_names_is_served(http: httpx.Client) -> None:
    page = http.get("/").text
    for name in ("icon.svg", "chat.css", "chat.js"):
        assert f'"{name}"' in page and http.get(f"/{name}").status_code == 200
    assert http.get("/icon.svg").headers["content-type"] == "image/svg+xml"
