"""A teacher in this process, over any serving engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from tunesmith.errors import EngineError
from tunesmith.protocols import Chunk, Price, Prompt, TokenLogprob
from tunesmith.teachers.local import LocalTeacher
from tunesmith.types import Message, SamplingParams, TeacherRequest


class Engine:
    """Says the prompt's length in two pieces; remembers the sampling it got."""

    num_slots = 3

    def __init__(self, context_length: int = 100, fault: EngineError | None = None, alive: bool = True) -> None:
        self.context_length = context_length
        self.started = self.stopped = 0
        self.sampling: list[SamplingParams] = []
        self._fault, self._alive = fault, alive

    async def start(self) -> None:
        self.started += 1

    async def stream(
        self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
    ) -> AsyncIterator[Chunk]:
        self.sampling.append(sampling)
        if self._fault is not None:
            raise self._fault
        yield Chunk(text="length ")
        reason = "length" if sampling.max_tokens < 20 else "stop"
        yield Chunk(text=str(len(prompt.input_ids)), finish_reason=reason, prompt_tokens=5, completion_tokens=2)

    async def healthy(self) -> bool:
        return self._alive

    async def stop(self) -> None:
        self.stopped += 1


def build_prompt(messages: Sequence[Message]) -> Prompt:
    return Prompt(tuple(messages[0].content.encode()), (0,))


def request(text: str = "hello", **sampling) -> TeacherRequest:
    return TeacherRequest(
        messages=(Message(role="user", content=text),), sampling=SamplingParams(**{"max_tokens": 50, **sampling})
    )


def teacher_of(engine: Engine) -> LocalTeacher:
    return LocalTeacher(engine, build_prompt, name="tiny@abc", price=Price(0, 0))


async def test_an_answer_is_put_together_and_counted() -> None:
    engine = Engine()
    teacher = teacher_of(engine)
    schema = {"type": "object"}
    first = await teacher.complete(request(json_schema=schema, rng_seed=4))
    await teacher.complete(request())
    await teacher.aclose()
    await teacher.aclose()
    assert (first.text, first.finish_reason) == ("length 5", "stop")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens, first.cost_usd) == (5, 2, 0)
    assert (engine.sampling[0].json_schema, engine.sampling[0].rng_seed) == (schema, 4)
    assert (engine.started, engine.stopped) == (1, 1)
    assert (teacher.identity, teacher.concurrency) == ("local:tiny@abc", 3)
    assert teacher.count_prompt_tokens(request("four")) == 4


async def test_an_answer_gets_the_room_the_prompt_leaves() -> None:
    engine = Engine(context_length=15)
    completion = await teacher_of(engine).complete(request("ten bytes!"))
    assert engine.sampling[0].max_tokens == 5
    assert completion.finish_reason == "length"


async def test_a_prompt_that_fills_the_context_is_the_fault_of_one_request() -> None:
    completion = await teacher_of(Engine(context_length=5)).complete(request("hello"))
    assert completion.finish_reason == "error"
    assert "5 tokens and the teacher's context 5" in (completion.error or "")


async def test_a_refused_request_is_data_and_a_dead_engine_is_an_error() -> None:
    refused = await teacher_of(Engine(fault=EngineError("bad schema"))).complete(request())
    assert (refused.finish_reason, refused.error) == ("error", "bad schema")
    with pytest.raises(EngineError, match="died"):
        await teacher_of(Engine(fault=EngineError("died"), alive=False)).complete(request())


async def test_log_probabilities_of_the_engine_are_passed_on_where_they_are_wanted() -> None:
    def entry(text: str, logprob: float, *top: TokenLogprob) -> TokenLogprob:
        return TokenLogprob(1, text, text.encode(), logprob, top)

    class Judge(Engine):
        async def stream(
            self, prompt: Prompt, sampling: SamplingParams, *, top_logprobs: int | None = None
        ) -> AsyncIterator[Chunk]:
            likely = (entry("4", -0.1), entry("5", -2.0), entry("5", -7.0), entry("6", float("-inf")))[:top_logprobs]
            found = (entry("4", -0.1, *likely),) if top_logprobs is not None else ()
            yield Chunk(text="4", logprobs=found)
            yield Chunk(finish_reason="stop", prompt_tokens=3, completion_tokens=1)

    teacher = teacher_of(Judge())
    wanted = await teacher.complete(request(top_logprobs=4))
    two = await teacher.complete(request(top_logprobs=2))
    unwanted = await teacher.complete(request())
    assert wanted.top_logprobs == two.top_logprobs == [{"4": -0.1, "5": -2.0}]
    assert (unwanted.text, unwanted.top_logprobs) == ("4", None)
