"""The official client against the gateway: answers, streams, choices, log probabilities, errors."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from scripted import RunningServer, ScriptedEngine

TEXTS = [
    "hello",
    "héllo wörld",
    "🎉 party 🎉",
    "漢字かな混じり文",
    "a\nb\tc",
    '{"a": "\\"q\\""}',
    "</script>",
    "👩‍👩‍👧‍👦",
]


def _ask(text: str) -> list[Any]:
    return [{"role": "user", "content": f"say {text}"}]


def test_models_are_listed_with_the_context_a_request_gets(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("desk", "model", "tunesmith")
    assert model.model_extra == {"max_model_len": 4096}
    assert client.models.retrieve("latest").id == "desk"


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_same_text_as_the_whole_answer(client: openai.OpenAI, text: str) -> None:
    whole = client.chat.completions.create(model="desk", messages=_ask(text))
    assert whole.choices[0].message.content == text and whole.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model="desk", messages=_ask(text), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_chunks_have_one_id_one_role_one_reason_and_usage_last(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(model="desk", messages=_ask("abc"), stream=True, stream_options=options)
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices] == ["assistant", *[None] * 4]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None, None, None, None, "stop"]
    assert [chunk.usage is not None for chunk in chunks] == [False] * 5 + [True]
    last = chunks[-1]
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 3
    assert last.usage.total_tokens == last.usage.prompt_tokens + 3


def test_without_include_usage_no_chunk_mentions_it(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "desk", "messages": _ask("ab"), "stream": True})
    assert "usage" not in answer.text and answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_several_choices_have_their_index_and_usage_counts_them_all(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="desk", messages=_ask("abcd"), n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(i, "abcd") for i in range(3)]
    assert answer.usage is not None and answer.usage.completion_tokens == 12
    prompt_tokens = len("user: say abcd\nassistant: ")
    assert answer.usage.prompt_tokens == prompt_tokens and answer.usage.total_tokens == prompt_tokens + 12


def test_streamed_choices_can_be_told_apart(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="desk", messages=[{"role": "user", "content": "draw"}], n=3, seed=5, stream=True, stream_options=options
    )
    texts = ["", "", ""]
    reasons: list[int] = []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.index] if choice.finish_reason else []
    assert len(set(texts)) == 3 and sorted(reasons) == [0, 1, 2]


def test_a_seed_repeats_and_choices_of_one_request_differ(client: openai.OpenAI) -> None:
    def draw(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="desk", messages=[{"role": "user", "content": "draw"}], n=2, seed=seed
        )
        return [choice.message.content for choice in answer.choices]

    assert draw(5) == draw(5) and len(set(draw(5))) == 2 and draw(5) != draw(99)


def test_stop_strings_end_the_answer_before_them(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="desk", messages=_ask("one two three"), stop=["wo", "zz", "yy", "xx"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one t", "stop")


def test_max_tokens_under_both_names_ends_the_answer(client: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = client.chat.completions.create(model="desk", messages=_ask("abcdef"), **limit)  # type: ignore[arg-type]
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")


def test_chat_log_probabilities_have_bytes_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="desk", messages=_ask("hé"), logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.bytes for entry in logprobs.content] == [[104], [195, 169]]
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2, 2]
    stream = client.chat.completions.create(
        model="desk", messages=_ask("hé"), logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [
        entry for chunk in stream if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.bytes for entry in streamed] == [[104], [195, 169]]


def test_tokens_inside_a_character_keep_their_bytes() -> None:
    with (
        RunningServer(ScriptedEngine(lambda _prompt, _sampling: ["a", b"\xf0\x9f", b"\x8e\x89", "b"])) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(model="desk", messages=_ask("x"), logprobs=True)
        content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
        assert answer.choices[0].message.content == "a🎉b"
        assert bytes(b for entry in content or [] for b in entry.bytes or []).decode() == "a🎉b"
        legacy = client.completions.create(model="desk", prompt="x", logprobs=1).choices[0].logprobs
        assert legacy is not None and legacy.tokens == ["a", "bytes:\\xf0\\x9f", "bytes:\\x8e\\x89", "b"]
        assert legacy.text_offset == [0, 1, 1, 2]


def test_completions_take_text_lists_and_token_ids(client: openai.OpenAI) -> None:
    for prompt in ("say ab", list(b"say ab"), ["say ab"], [list(b"say ab")]):
        answer = client.completions.create(model="desk", prompt=prompt)
        assert answer.choices[0].text == "ab" and answer.id.startswith("cmpl-")
    several = client.completions.create(model="desk", prompt=["say ab", "say cd"], n=2)
    assert [choice.text for choice in several.choices] == ["ab", "ab", "cd", "cd"]
    assert several.usage is not None and several.usage.prompt_tokens == 12 and several.usage.completion_tokens == 8


def test_completions_default_to_16_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="desk", prompt="say " + "x" * 40)
    assert answer.choices[0].text == "x" * 16 and answer.choices[0].finish_reason == "length"


def test_completions_stream_and_echo(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="desk", prompt="say hé", stream=True, echo=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "say héhé"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]


def test_legacy_log_probabilities_are_four_lists_of_equal_length(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="desk", prompt="say abc", logprobs=2).choices[0].logprobs
    assert logprobs is not None and logprobs.tokens == ["a", "b", "c"] and logprobs.text_offset == [0, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 3 and len(logprobs.top_logprobs or []) == 3
    streamed = client.completions.create(model="desk", prompt="say abc", logprobs=2, stream=True)
    offsets = [o for chunk in streamed if (lp := chunk.choices[0].logprobs) for o in lp.text_offset or []]
    assert offsets == [0, 1, 2]


def test_the_systems_prompt_of_the_task_comes_first_unless_the_request_has_one() -> None:
    from scripted import ByteRenderer

    from tunesmith.server.served import ServedModel
    from tunesmith.server.settings import ServerSettings

    model = ServedModel(id="desk", renderer=ByteRenderer(), system_prompt="Be brief.")
    for settings, messages, expected in (
        (ServerSettings(), [{"role": "user", "content": "hi"}], "system: Be brief.\nuser: hi\n"),
        (ServerSettings(), [{"role": "developer", "content": "X"}, {"role": "user", "content": "hi"}], "system: X\n"),
        (ServerSettings(use_system_prompt=False), [{"role": "user", "content": "hi"}], "user: hi\n"),
    ):
        with RunningServer(ScriptedEngine(), settings, model) as running:
            httpx.post(f"{running.url}/v1/chat/completions", json={"model": "desk", "messages": messages})
            assert running.engine.seen[0][0].startswith(expected)


def test_a_request_chooses_the_condition_of_its_answer_where_the_template_writes_one(
    server: RunningServer, http: httpx.Client
) -> None:
    from scripted import ByteRenderer

    from tunesmith.server.served import ServedModel
    from tunesmith.server.settings import ServerSettings

    class Conditioned(ByteRenderer):
        template = "{{ message['condition'] }}"

        def prompt(self, messages: Any) -> Any:
            named = [each.model_copy(update={"content": f"{each.condition} {each.content}"}) for each in messages]
            return super().prompt(named)

    body: dict[str, Any] = {"model": "desk", "messages": _ask("hi"), "condition": "GPT3"}
    with RunningServer(ScriptedEngine(), ServerSettings(), ServedModel(id="desk", renderer=Conditioned())) as running:
        httpx.post(f"{running.url}/v1/chat/completions", json=body).raise_for_status()
        assert running.engine.seen[0][0].startswith("user: GPT3 say hi\n")
        for wrong in ("<|end_of_turn|>", "a\nb", "", "x" * 65):
            refused = httpx.post(f"{running.url}/v1/chat/completions", json={**body, "condition": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "condition"), wrong
    error = http.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], error["code"]) == ("condition", "unsupported_parameter")
    assert "writes no condition" in error["message"]


def test_content_parts_are_joined(server: RunningServer, http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "say a"}, {"type": "text", "text": "b"}]
    body = {"model": "desk", "messages": [{"role": "user", "content": parts}]}
    assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "ab"


def test_sampling_parameters_reach_the_engine_unchanged(server: RunningServer, http: httpx.Client) -> None:
    given = {
        "temperature": 0.3, "top_p": 0.8, "top_k": 7, "min_p": 0.05, "frequency_penalty": -1.5,
        "presence_penalty": 0.5, "seed": 42, "max_tokens": 9, "stop": "zz",
    }  # fmt: skip
    http.post("/v1/chat/completions", json={"model": "desk", "messages": _ask("a"), **given}).raise_for_status()
    sampling = server.engine.seen[-1][1]
    assert sampling.model_dump(exclude_none=True) == {
        "temperature": 0.3, "top_p": 0.8, "top_k": 7, "min_p": 0.05, "frequency_penalty": -1.5,
        "presence_penalty": 0.5, "rng_seed": 42, "max_tokens": 9, "stop": ("zz",),
    }  # fmt: skip


def test_defaults_are_openais_and_answers_may_fill_the_context(server: RunningServer, http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json={"model": "desk", "messages": _ask("a")}).raise_for_status()
    sampling = server.engine.seen[-1][1]
    assert (sampling.temperature, sampling.top_p, sampling.rng_seed) == (1.0, 1.0, None)
    assert sampling.max_tokens == 4096 - len("user: say a\nassistant: ")


def test_response_formats_become_schemas(server: RunningServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="desk", messages=_ask("a"), response_format={"type": "json_object"})
    assert server.engine.seen[-1][1].json_schema == {"type": "object"}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    client.chat.completions.create(
        model="desk",
        messages=_ask("a"),
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    )
    assert server.engine.seen[-1][1].json_schema == schema


def test_the_client_raises_its_own_error_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=_ask("a"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="desk", messages=_ask("a"), temperature=3)
    assert wrong.value.param == "temperature" and isinstance(wrong.value.code, str)


def test_a_fault_in_the_middle_of_a_stream_is_raised_by_the_client_without_inner_details() -> None:
    engine = ScriptedEngine()
    engine.fail_after = 2
    with (
        RunningServer(engine) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="desk", messages=_ask("abcdef"), stream=True)
        with pytest.raises(openai.APIError) as fault:
            for _ in stream:
                pass
        assert "secret" not in str(fault.value) and fault.value.code == "engine_error"
        with pytest.raises(openai.InternalServerError) as whole:
            client.chat.completions.create(model="desk", messages=_ask("abcdef"))
        assert "secret" not in str(whole.value)
