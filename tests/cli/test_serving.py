"""Options of `tunesmith serve`: what is wrong is named as the option is, before a model is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.serving import serve_model
from tunesmith.errors import TunesmithError

NOTHING: dict[str, Any] = {
    "slots": None, "context_length": None, "engine_name": None, "vllm_python": None, "engine_args": None
}  # fmt: skip

WRONG: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({}, {"slots": 0}, "--slots", "expected at least 1, found 0"),
    ({}, {"slots": 100_000}, "--slots", "expected at most 1024"),
    ({}, {"slots": 257}, "--slots", "at most 256"),
    ({}, {"context_length": 0}, "--context-length", "expected at least 16, found 0"),
    ({}, {"context_length": -5}, "--context-length", "found -5"),
    ({}, {"engine_name": ""}, "--engine", "no engine ''"),
    ({}, {"engine_args": ["--enforce-eager"]}, "--engine-arg", "for vLLM"),
    ({}, {"engine_name": "llama_cpp", "vllm_python": Path("p")}, "--vllm-python", "for vLLM"),
    ({"port": 70_000}, {}, "--port", "at most 65535"),
    ({"cors_origins": ["foo"]}, {}, "--cors-origin", "scheme://host"),
    ({"cors_origins": ["https://app.example/path"]}, {}, "--cors-origin", "scheme://host"),
    ({"cors_origins": ["*"]}, {}, "--cors-origin", "scheme://host"),
    ({"allowed_hosts": ["https://desk.example"]}, {}, "--allowed-host", "without scheme"),
    ({"allowed_hosts": ["desk.example:443"]}, {}, "--allowed-host", "without scheme"),
    ({"requests_per_minute": 0}, {}, "--requests-per-minute", "at least 1"),
    ({"max_queue": -1}, {}, "--max-queue", "at least 0"),
    ({"api_key_envs": ["NO_SUCH_KEY"]}, {}, "--api-key-env", "NO_SUCH_KEY"),
    ({"api_key_file": Path("no-such-file")}, {}, "--api-key-file", "cannot read"),
    ({"host": "0.0.0.0"}, {}, "--host", "without an API key"),
]


@pytest.mark.parametrize(("settings", "options", "where", "said"), WRONG)
def test_a_wrong_option_is_named_as_it_is_typed(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], where: str, said: str
) -> None:
    with pytest.raises(TunesmithError) as caught:
        serve_model("no-such-model", tmp_path, settings=settings, **{**NOTHING, **options})
    assert caught.value.where == where
    assert said in caught.value.message
