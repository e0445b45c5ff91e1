"""New rows from a task sentence alone, and a system prompt for the student (the idea of gpt-llm-trainer, 2023, made
parallel: rounds instead of one pair after the other).

Pairs are asked for in rounds of 1, 2, 4 ... requests. A request shows up to eight pairs accepted in earlier rounds and
asks for something harder, so the level rises with the number of rows.

Law: the requests of a round are a function of (rng_seed, task, options, rows accepted before that round), a round
begins when the one before is judged, and answers are judged in the order of the requests. So what comes out does not
depend on concurrency, timing or interruptions.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

from tunesmith.errors import RecipeError, TeacherError
from tunesmith.generating.examples import Example
from tunesmith.generating.gate import Gate
from tunesmith.generating.in_order import Patience, answers_in_order
from tunesmith.generating.parsing import Row, parse_rows
from tunesmith.generating.prompt_files import PromptFile, load_prompt
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import SamplingParams, Task, TeacherRequest

MAX_PAIRS_SHOWN = 8
MAX_REQUESTS_PER_ROUND = 32
MAX_SYSTEM_PROMPT_TOKENS = 500


@dataclass(frozen=True)
class _Pen:
    """What every request of one run has in common."""

    options: Generate
    task: Task
    rng_seed: int
    prompt: PromptFile

    def request(self, section: str, values: Mapping[str, object], number: int, max_tokens: int) -> TeacherRequest:
        """Request `number`, made from one section of the prompt file."""
        schema = self.task.output_schema
        shared = {
            "task": self.task.description,
            "schema": json.dumps(schema, ensure_ascii=False) if schema is not None else None,
        }
        return TeacherRequest(
            messages=self.prompt.messages(section, {**shared, **values}),
            sampling=SamplingParams(
                max_tokens=max_tokens,
                temperature=self.options.temperature,
                top_p=self.options.top_p,
                rng_seed=self.rng(number, "sampling").getrandbits(31),
            ),
            sample_index=number,
        )

    def rng(self, number: int, purpose: str) -> random.Random:
        """Randomness of one request for one purpose."""
        return random.Random(f"{self.rng_seed}/{number}/{purpose}")


async def distill(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. Returns the task with a system prompt.

    Raises RecipeError without a task description, TeacherError where the teacher is of no use, BudgetExceeded where
    not even the system prompt could be asked for.
    """
    if not ctx.task.description:
        raise RecipeError(
            "distill works from the task alone, and there is none",
            where="recipe.ingest.task",
            hint="say in one or two sentences what the model should do",
        )
    pen = _Pen(options, ctx.task, ctx.rng_seed, load_prompt("distill", options.language))
    number = 0
    task = ctx.task
    if not task.system_prompt:
        task = task.model_copy(update={"system_prompt": await _write_system_prompt(pen, ctx)})
        number = 1
    gate = Gate(ctx, [], wanted=wanted, max_similarity=options.max_similarity, generator="distill")
    patience = Patience(options.max_failures, where="recipe.generate")
    round_number = 0
    while gate.missing > 0:
        size = min(2**round_number, MAX_REQUESTS_PER_ROUND, math.ceil(gate.missing / options.rows_per_request))
        numbers = range(number, number + size)
        if await _round(pen, task, ctx, gate, patience, numbers, round_number, wanted) < size:
            break  # a hard stop
        number += size
        round_number += 1
    return task


async def _round(
    pen: _Pen,
    task: Task,
    ctx: GenerationContext,
    gate: Gate,
    patience: Patience,
    numbers: range,
    round_number: int,
    wanted: int,
) -> int:
    """Ask the requests of one round side by side and judge their answers in order; how many were answered."""
    before = tuple(gate.accepted)
    requests = [_pairs_request(pen, task, before, number, wanted) for number in numbers]
    num_answered = 0
    async with aclosing(answers_in_order(ctx.client, requests, lambda in_flight: True)) as answers:
        async for request, completion in answers:
            num_answered += 1
            if completion.finish_reason == "error":
                patience.failed(completion.error)
                continue
            pieces = parse_rows(completion.text, cut=completion.finish_reason == "length")
            gate.judge(
                pieces,
                asked_for=pen.options.rows_per_request,
                request=request.sample_index,
                system_prompt=task.system_prompt,
                metadata={"round": round_number},
            )
            patience.read(sum(isinstance(piece, Row) for piece in pieces), completion.text)
    return num_answered


def _pairs_request(pen: _Pen, task: Task, accepted: tuple[Example, ...], number: int, wanted: int) -> TeacherRequest:
    shown = pen.rng(number, "pairs").sample(accepted, min(MAX_PAIRS_SHOWN, len(accepted)))
    levels = pen.prompt.lines("levels")
    values = {
        "system_prompt": task.system_prompt,
        "num_shown": len(shown),
        "examples": "\n".join(pair.line() for pair in shown),
        "num_rows": pen.options.rows_per_request,
        "level": levels[min(len(levels) * len(accepted) // wanted, len(levels) - 1)],
    }
    return pen.request("user", values, number, pen.options.max_tokens)


async def _write_system_prompt(pen: _Pen, ctx: GenerationContext) -> str:
    request = pen.request("write_system_prompt", {}, 0, MAX_SYSTEM_PROMPT_TOKENS)
    completion = await ctx.client.ask(request)
    if completion.finish_reason == "error":
        raise TeacherError(
            f"the teacher wrote no system prompt: {completion.error}",
            where="recipe.generate.teacher",
            hint="run again, or write `ingest.system_prompt` yourself",
        )
    text = completion.text.split("</think>")[-1].strip().strip("`").strip()
    if len(text) > 1 and text[0] in "\"“'" and text[-1] in "\"”'":
        text = text[1:-1].strip()
    if completion.finish_reason == "length":  # end with the last whole sentence
        end = max(text.rfind(mark) for mark in ".!?。！？\n")
        text = text[: end + 1].strip() if end > 0 else text
    if not text:
        raise TeacherError(
            "the teacher answered nothing when asked for a system prompt",
            where="recipe.generate.teacher",
            hint="write `ingest.system_prompt` yourself, or choose another teacher",
        )
    return text
