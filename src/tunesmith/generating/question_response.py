"""Questions from questions, then responses (the two stages of Lamini's data generator, 2023), together or apart.

`questions` writes questions alone; their file can be edited by hand; `responses` answers the questions of a file;
`question_response` does both in one run. A new question is asked to be far from the seed it is shown; seeds take turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import STRING, array_of
from tunesmith.generating.gate import Draft, Frame, Piece
from tunesmith.generating.lineage import Lineage
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.seeds import frame_of, seed_examples
from tunesmith.generating.sources import Text, read_questions
from tunesmith.generating.terms import usable
from tunesmith.generating.texts import list_of_texts
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded, Message, Record, Task

_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？\n])")
_MIN_REPEATED_CHARACTERS = 12


class _Question(Record):
    question: str
    made_from: Lineage


async def questions(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Stage one: rows of a user message alone. Raises DataError without seeds."""
    return await _write(options, ctx, wanted, generator="questions", with_answers=False)


async def question_response(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Both stages. Raises DataError without seeds."""
    return await _write(options, ctx, wanted, generator="question_response", with_answers=True)


async def responses(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Stage two: an answer to each question of `generate.files`, in their order, until `wanted` are accepted.

    Raises RecipeError without files. A row of a file that holds no question is rejected with its place.
    """
    pen = Pen.of(options, ctx, "question_response")
    given: list[Text] = []
    for found in usable(options, read_questions(ctx.files, generator="responses")):
        if isinstance(found, Excluded):
            ctx.reject(found)
        else:
            given.append(found)
    shop = Workshop(options, ctx, wanted, generator="responses", rows_per_item=1, compare=False)

    async def work_on(number: int) -> Work:
        lineage = given[number].lineage
        system_prompt = ctx.task.system_prompt or lineage.system_prompt
        draft = await _answered(pen, given[number].text, system_prompt, number)
        metadata = {**lineage.metadata(), "question_from": given[number].where}
        frame = Frame(system_prompt, lineage.origin, lineage.split, metadata, lineage.licence)
        return Work((draft,), frame, draft.messages[-1].content)

    await shop.write(work_on, range(len(given)))
    return ctx.task


async def _write(options: Generate, ctx: GenerationContext, wanted: int, *, generator: str, with_answers: bool) -> Task:
    seeds = seed_examples(ctx, generator)
    pen = Pen.of(options, ctx, "question_response")
    order = pen.rng("all", "order").sample(seeds, len(seeds))
    shop = Workshop(
        options,
        ctx,
        wanted,
        generator=generator,
        rows_per_item=options.rows_per_request,
        examples=seeds,
        needs_reply=with_answers,
    )

    async def work_on(number: int) -> Work:
        seed = order[number % len(order)]
        frame = frame_of([seed], ctx.task)
        values = {"question": seed.input, "num_rows": options.rows_per_request}
        schema = array_of(STRING, options.rows_per_request)
        request = pen.request("ask", values, number, schema=schema)
        found, completion = await pen.ask_form(request, partial(list_of_texts, most=options.rows_per_request))
        pieces: list[Piece] = []
        for question in found:
            if not isinstance(question, str):
                pieces.append(question)
            elif with_answers:
                pieces.append(await _answered(pen, question, frame.system_prompt, number))
            else:
                pieces.append(Draft((Message(role="user", content=question),)))
        return Work(tuple(pieces), frame, completion.text)

    await shop.write(work_on)
    return ctx.task


async def _answered(pen: Pen, question: str, system_prompt: str | None, number: int) -> Draft:
    asked = Message(role="user", content=question)
    completion = await pen.reply([asked], system_prompt or pen.fill("answer_system", {}), number)
    text = without_repetition(without_thoughts(completion.text))
    fault = None
    if completion.finish_reason == "length":
        fault = "cut_off", f"the answer is longer than max_tokens: {pen.options.max_tokens}"
    return Draft((asked, Message(role="assistant", content=text)), fault=fault)


def write_questions(path: Path, rows: Sequence[Conversation]) -> None:
    """The questions of rows as a file to edit by hand, one {"question": ..., "made_from": ...} a line; `responses` reads it. A
    line that is added needs no "made_from": such a question is its writer's own."""
    lines = [_Question(question=row.messages[-1].content, made_from=Lineage.of(row)) for row in rows]
    write_records(path, lines)


def without_repetition(text: str) -> str:
    """The text without sentences that stand in it already: small teachers go in circles. Short ones and code stay."""
    if "```" in text:
        return text
    seen: set[str] = set()
    kept: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        plain = " ".join(sentence.lower().split())
        if plain in seen:
            continue
        if len(plain) >= _MIN_REPEATED_CHARACTERS:
            seen.add(plain)
        kept.append(sentence)
    return "".join(kept).strip()
