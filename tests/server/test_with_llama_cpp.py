"""The gateway around the real engine and the embedded model, by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted import RunningServer

from tunesmith.chat.renderer import Renderer
from tunesmith.inference.llama_cpp import LlamaCppEngine
from tunesmith.server.served import ServedModel

pytestmark = pytest.mark.real
EMOJI = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "🎉漢字"}}}


@pytest.fixture(scope="module")
def running(smollm2: Any, smollm2_dir: Path) -> Iterator[RunningServer]:
    engine = LlamaCppEngine(smollm2.gguf, context_length=512, num_slots=4, num_threads=1)
    model = ServedModel(id="smol", renderer=Renderer.for_model(smollm2_dir))
    with RunningServer(engine, model=model) as server:
        yield server


@pytest.fixture(scope="module")
def smol(running: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


def _ask(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": text}], "temperature": 0, **options}


def _streamed(client: openai.OpenAI, request: dict[str, Any]) -> str:
    chunks = client.chat.completions.create(**request, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_streams_equal_whole_answers_also_inside_characters(smol: openai.OpenAI) -> None:
    for request in (
        _ask("What is the capital of France?", max_tokens=12),
        _ask("Reply with a tree emoji", max_tokens=7),
        _ask("Say it", max_tokens=30, response_format=EMOJI),
        _ask("Say it", max_tokens=5, response_format=EMOJI),
    ):
        whole = smol.chat.completions.create(**request).choices[0].message.content
        assert whole and _streamed(smol, request) == whole and "�" not in whole


def test_log_probabilities_spell_the_answer(smol: openai.OpenAI) -> None:
    answer = smol.chat.completions.create(
        **_ask("Say it", max_tokens=30, response_format=EMOJI, logprobs=True, top_logprobs=2)
    )
    content = answer.choices[0].logprobs.content or []  # type: ignore[union-attr]
    assert bytes(byte for entry in content for byte in entry.bytes or []).decode() == '"🎉漢字"'
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def test_a_seed_repeats_in_a_crowd_and_choices_differ(smol: openai.OpenAI) -> None:
    request = _ask("Tell me a story", max_tokens=8, seed=3, n=2) | {"temperature": 1}

    def draw(_: int) -> tuple[str | None, ...]:
        answer = smol.chat.completions.create(**request)
        assert answer.usage is not None and answer.usage.completion_tokens == 16
        return tuple(choice.message.content for choice in answer.choices)

    with ThreadPoolExecutor(4) as pool:
        drawn = {draw(0), *pool.map(draw, range(4))}
    assert len(drawn) == 1 and len(set(drawn.pop())) == 2


def test_a_schema_that_llama_cpp_would_ignore_is_refused(smol: openai.OpenAI) -> None:
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            smol.chat.completions.create(**_ask("x", response_format=broken), stream=stream)
        assert refused.value.param == "response_format"


def test_json_mode_gives_json(smol: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}, "s": {"type": "string", "maxLength": 5}},
        "required": ["n", "s"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = smol.chat.completions.create(**_ask("Give me json", max_tokens=60, response_format=wanted))
    assert json.loads(answer.choices[0].message.content or "")["n"] in (1, 2)


def test_context_is_what_is_advertised(smol: openai.OpenAI) -> None:
    context = smol.models.list().data[0].model_extra["max_model_len"]  # type: ignore[index]
    ids = [5] * (context - 3)
    answer = smol.completions.create(model="smol", prompt=ids, max_tokens=3, temperature=0)
    assert answer.usage is not None and answer.usage.prompt_tokens == context - 3
    with pytest.raises(openai.BadRequestError) as refused:
        smol.completions.create(model="smol", prompt=[*ids, 5], max_tokens=3)
    assert refused.value.param == "max_tokens" and refused.value.code == "context_length_exceeded"
