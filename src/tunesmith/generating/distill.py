"""New rows from a task sentence alone, and a system prompt for the student (the idea of gpt-llm-trainer, 2023, made
parallel: rounds instead of one pair after the other, several pairs in one answer).

Pairs are asked for in rounds of 1, 2, 4 ... requests. A request shows up to eight pairs kept before its round and asks
for something harder. The first rounds climb one level each; once the top is reached, requests take the levels in
turn, so that a large order covers all of them.

Law: the requests of a round are a function of (rng_seed, task, options, rows kept before that round), so what comes
out depends neither on timing nor on interruptions, and a larger order begins with the rows of a smaller one.
"""

from __future__ import annotations

from tunesmith.errors import RecipeError, TeacherError
from tunesmith.generating.asking import Pen, TeacherFailed
from tunesmith.generating.constraints import rows_schema
from tunesmith.generating.examples import Example
from tunesmith.generating.gate import Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Task, TeacherRequest

MAX_PAIRS_SHOWN = 8
MAX_SYSTEM_PROMPT_TOKENS = 500


async def distill(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. Returns the task with a system prompt.

    Raises RecipeError without a task description, TeacherError where the teacher is of no use, BudgetExceeded where
    not even the system prompt could be asked for.
    """
    require_task(ctx, "distill")
    pen = Pen.of(options, ctx, "distill")
    task, first = ctx.task, 0
    if not task.system_prompt:
        task, first = task.model_copy(update={"system_prompt": await _write_system_prompt(pen)}), 1
    shop = Workshop(options, ctx, wanted, generator="distill", rows_per_item=options.rows_per_request)

    async def work_after(number: int, kept: tuple[Example, ...], round_number: int) -> Work:
        level = _level(pen, number, round_number)
        pieces, completion = await pen.ask_rows(_pairs_request(pen, task, kept, number, level))
        frame = Frame(task.system_prompt, metadata={"round": round_number, "level": level})
        return Work(tuple(pieces), frame, completion.text)

    await shop.write_in_rounds(work_after, first=first)
    return task


def require_task(ctx: GenerationContext, generator: str) -> str:
    """The task description. RecipeError where there is none."""
    if not ctx.task.description:
        raise RecipeError(
            f"{generator} works from the task alone, and there is none",
            where="recipe.ingest.task",
            hint="say in one or two sentences what the model should do",
        )
    return ctx.task.description


def _level(pen: Pen, number: int, round_number: int) -> int:
    top = len(pen.prompt.lines("levels")) - 1
    return round_number if round_number <= top else number % (top + 1)


def _pairs_request(pen: Pen, task: Task, kept: tuple[Example, ...], number: int, level: int) -> TeacherRequest:
    shown = pen.rng(number, "pairs").sample(kept, min(MAX_PAIRS_SHOWN, len(kept)))
    values = {
        "system_prompt": task.system_prompt,
        "num_shown": len(shown),
        "examples": "\n".join(pair.line() for pair in shown),
        "num_rows": pen.options.rows_per_request,
        "level": pen.prompt.lines("levels")[level],
    }
    schema = rows_schema(pen.options.rows_per_request, task.output_schema)
    return pen.request("user", values, number, schema=schema)


async def _write_system_prompt(pen: Pen) -> str:
    request = pen.request("write_system_prompt", {}, 0, max_tokens=MAX_SYSTEM_PROMPT_TOKENS)
    try:
        completion = await pen.ask(request)
    except TeacherFailed as failure:
        raise TeacherError(
            f"the teacher wrote no system prompt: {failure}",
            where="recipe.generate.teacher",
            hint="run again, or write `ingest.system_prompt` yourself",
        ) from None
    text = without_thoughts(completion.text).split("</think>")[-1].strip().strip("`").strip()
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
