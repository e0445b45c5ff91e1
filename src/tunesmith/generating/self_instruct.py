"""New rows from seed examples, several in one answer (after Self-Instruct, Wang et al. 2022, in the batched form of
Stanford Alpaca 2023: one call writes inputs and outputs; only seeds are shown, never generated rows).

Law: request i is a function of (rng_seed, i, seeds, options) and of nothing else, and answers are judged in the order
of the requests. So what comes out does not depend on concurrency, timing or interruptions.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import message_like, rows_schema
from tunesmith.generating.examples import Example
from tunesmith.generating.seeds import frame_of, seed_examples, system_message
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Task, TeacherRequest


async def self_instruct(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. Returns the task unchanged.

    Raises DataError where no seed has a user message and a reply, TeacherError where the teacher is of no use.
    """
    seeds = seed_examples(ctx, "self_instruct")
    pen = Pen.of(options, ctx, "self_instruct")
    shop = Workshop(
        options, ctx, wanted, generator="self_instruct", rows_per_item=options.rows_per_request, examples=seeds
    )

    async def work_on(number: int) -> Work:
        pieces, completion = await pen.ask_rows(build_request(pen, seeds, number))
        return Work(tuple(pieces), frame_of(draw_seeds(pen, seeds, number), ctx.task), completion.text)

    await shop.write(work_on)
    return ctx.task


def build_request(pen: Pen, seeds: Sequence[Example], number: int) -> TeacherRequest:
    """Request `number`. Its number is part of its key, so equal draws are still different requests."""
    options = pen.options
    drawn = draw_seeds(pen, seeds, number)
    values = {
        "system_prompt": pen.task.system_prompt or system_message(drawn[0]),
        "num_shown": len(drawn),
        "examples": "\n".join(seed.line() for seed in drawn),
        "num_rows": options.rows_per_request,
        "angle": pen.rng(number, "angle").choice(pen.prompt.lines("angles")),
    }
    message = message_like([seed.input for seed in seeds])
    schema = rows_schema(options.rows_per_request, pen.task.output_schema, message)
    return pen.request("user", values, number, schema=schema)


def draw_seeds(pen: Pen, seeds: Sequence[Example], number: int) -> list[Example]:
    """The seeds that request `number` shows: at most num_seeds_shown, without repetition."""
    return pen.rng(number, "seeds").sample(list(seeds), min(pen.options.num_seeds_shown, len(seeds)))
