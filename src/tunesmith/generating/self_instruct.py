"""New rows from seed examples, several in one answer (after Self-Instruct, Wang et al. 2022, in the batched form of
Stanford Alpaca 2023: one call writes inputs and outputs; only seeds are shown, never generated rows).

Law: request i is a function of (rng_seed, i, seeds, options) and of nothing else, and answers are judged in the order
of the requests. So what comes out does not depend on concurrency, timing or interruptions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from itertools import count

from tunesmith.errors import DataError
from tunesmith.generating.examples import Example, example_of
from tunesmith.generating.gate import Gate
from tunesmith.generating.in_order import Patience, answers_in_order
from tunesmith.generating.parsing import Row, parse_rows
from tunesmith.generating.prompt_files import load_prompt
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import SamplingParams, Task, TeacherRequest


async def self_instruct(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. Returns the task unchanged.

    Raises DataError where no seed has a user message and a reply, TeacherError where the teacher is of no use.
    """
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    if not seeds:
        raise DataError(
            f"self_instruct needs examples of a message and its reply; none of the {len(ctx.seeds)} training rows is one",
            where="recipe.ingest.files",
            hint="name example files, or use `generate.generator: distill`, which works from `ingest.task` alone",
        )
    gate = Gate(ctx, seeds, wanted=wanted, max_similarity=options.max_similarity, generator="self_instruct")
    patience = Patience(options.max_failures, where="recipe.generate")
    asking = answers_in_order(
        ctx.client,
        requests(options, ctx.task, seeds, ctx.rng_seed),
        lambda in_flight: in_flight * options.rows_per_request < gate.missing,
    )
    async with aclosing(asking) as answers:
        async for request, completion in answers:
            if completion.finish_reason == "error":
                patience.failed(completion.error)
                continue
            pieces = parse_rows(completion.text, cut=completion.finish_reason == "length")
            drawn = draw_seeds(options, seeds, ctx.rng_seed, request.sample_index)
            first = drawn[0].conversation
            gate.judge(
                pieces,
                asked_for=options.rows_per_request,
                request=request.sample_index,
                system_prompt=ctx.task.system_prompt or _system_message(drawn[0]),
                origin=first.origin,
                split="train" if all(seed.conversation.split == "train" for seed in drawn) else None,
                metadata={"seeds": [seed.conversation.id for seed in drawn]},
            )
            patience.read(sum(isinstance(piece, Row) for piece in pieces), completion.text)
    return ctx.task


def requests(options: Generate, task: Task, seeds: Sequence[Example], rng_seed: int) -> Iterator[TeacherRequest]:
    """Request 0, 1, 2 ... without end."""
    return (build_request(options, task, seeds, rng_seed, number) for number in count())


def build_request(
    options: Generate, task: Task, seeds: Sequence[Example], rng_seed: int, number: int
) -> TeacherRequest:
    """Request `number`. Its number is part of its key, so equal draws are still different requests."""
    prompt = load_prompt("self_instruct", options.language)
    drawn = draw_seeds(options, seeds, rng_seed, number)
    values = {
        "task": task.description,
        "system_prompt": task.system_prompt or _system_message(drawn[0]),
        "schema": json.dumps(task.output_schema, ensure_ascii=False) if task.output_schema is not None else None,
        "num_shown": len(drawn),
        "examples": "\n".join(seed.line() for seed in drawn),
        "num_rows": options.rows_per_request,
        "angle": _rng(rng_seed, number, "angle").choice(prompt.lines("angles")),
    }
    return TeacherRequest(
        messages=prompt.messages("user", values),
        sampling=SamplingParams(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            rng_seed=_rng(rng_seed, number, "sampling").getrandbits(31),
        ),
        sample_index=number,
    )


def draw_seeds(options: Generate, seeds: Sequence[Example], rng_seed: int, number: int) -> list[Example]:
    """The seeds that request `number` shows: at most num_seeds_shown, without repetition."""
    return _rng(rng_seed, number, "seeds").sample(list(seeds), min(options.num_seeds_shown, len(seeds)))


def _rng(rng_seed: int, number: int, purpose: str) -> random.Random:
    return random.Random(f"{rng_seed}/{number}/{purpose}")  # a string is hashed with SHA-512: the same everywhere


def _system_message(example: Example) -> str | None:
    first = example.conversation.messages[0]
    return first.content if first.role == "system" and first.content.strip() else None
