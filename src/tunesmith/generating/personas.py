"""Rows in the voices of many people (the idea of Persona Hub, Chan et al. 2024). The people are drawn here, from
attribute tables that are data, so no list of personas with a licence of its own is needed."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files

import yaml

from tunesmith.errors import RecipeError
from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import message_like, rows_schema
from tunesmith.generating.examples import example_of
from tunesmith.generating.seeds import frame_of
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Task


async def personas(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """One person an item, who sends `rows_per_request` messages. Raises RecipeError with neither seeds nor a task."""
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    if not seeds and not ctx.task.description:
        raise RecipeError(
            "personas needs to know what people would write about",
            where="recipe.ingest.task",
            hint="say in one or two sentences what the model should do, or name example files",
        )
    pen = Pen.of(options, ctx, "personas")
    shop = Workshop(options, ctx, wanted, generator="personas", rows_per_item=options.rows_per_request, examples=seeds)

    async def work_on(number: int) -> Work:
        persona = draw_persona(pen.rng(number, "persona"), options.language)
        shown = pen.rng(number, "seeds").sample(seeds, min(options.num_seeds_shown, len(seeds)))
        frame = frame_of(shown, ctx.task, persona=persona)
        values = {
            "system_prompt": frame.system_prompt,
            "persona": persona,
            "examples": "\n".join(seed.line() for seed in shown),
            "num_rows": options.rows_per_request,
        }
        message = message_like([seed.input for seed in seeds])
        schema = rows_schema(options.rows_per_request, ctx.task.output_schema, message)
        pieces, completion = await pen.ask_rows(pen.request("user", values, number, schema=schema))
        return Work(tuple(pieces), frame, completion.text)

    await shop.write(work_on)
    return ctx.task


def draw_persona(rng: random.Random, language: str) -> str:
    """One value of every attribute, in the order of the table."""
    comma = "，" if language == "zh" else ", "
    return comma.join(rng.choice(values) for values in attributes(language).values())


@cache
def attributes(language: str) -> dict[str, list[str]]:
    """Attribute -> its values."""
    text = (files("tunesmith.generating") / f"personas.{language}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
