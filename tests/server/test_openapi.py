"""Requests made from our own OpenAPI file: no server error, no undocumented status, errors in OpenAI's shape."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from scripted import RunningServer, ScriptedEngine

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_SETTINGS = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_server_answers_anything_as_it_says(mode: GenerationMode) -> None:
    with RunningServer(ScriptedEngine(lambda _prompt, _sampling: list("ok"))) as running:
        api = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        operations = [result.ok() for result in api.get_all_operations()]
        assert {operation.label for operation in operations} >= {"POST /v1/chat/completions", "GET /health"}
        statuses: set[int] = set()
        for operation in operations:
            if mode is GenerationMode.NEGATIVE and operation.method == "get":
                continue  # nothing of it can be wrong

            @_SETTINGS
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                response = case.call()
                statuses.add(response.status_code)
                case.validate_response(response, checks=_CHECKS)

            send()
        assert statuses & {400, 404} and not any(status >= 500 for status in statuses)


def test_the_file_names_every_parameter_of_chat_with_its_bounds(server: RunningServer) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model", "messages"] and body["additionalProperties"] is False
    assert body["properties"]["n"]["anyOf"][0] == {"maximum": 16, "minimum": 1, "type": "integer"}
    assert "$ref" not in str(body)
