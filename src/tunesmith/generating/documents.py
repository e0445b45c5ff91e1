"""Questions and answers from documents (the question generator of Lamini's later SDK): each document in overlapping
chunks, `rows_per_request` typed questions a chunk, each answered from its chunk alone. An answer that is not in the text
is asked to say so, and is rejected."""

from __future__ import annotations

import re
from functools import partial

from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import STRING, array_of, object_of
from tunesmith.generating.gate import Draft, Frame, Piece
from tunesmith.generating.parsing import Row, parse_objects, within, without_thoughts
from tunesmith.generating.sources import Chunk, chunks_of, read_texts
from tunesmith.generating.terms import usable
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Excluded, Message, Task

_FIELDS = {"type": ("kind", "类型"), "question": ("问题",)}
_NOT_THERE = re.compile(r"\bNOT IN TEXT\b", re.IGNORECASE)
_POINTS_AT_TEXT = re.compile(
    r"\b(?:the|this) (?:text|document|passage|excerpt|article)\b|本文|该文|文中|这段文字|该文档", re.IGNORECASE
)


async def documents(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """One chunk an item, in the order of the files, until `wanted` rows are accepted. RecipeError without files."""
    pen = Pen.of(options, ctx, "documents")
    chunks: list[Chunk] = []
    for found in usable(options, read_texts(ctx.files, generator="documents")):
        if isinstance(found, Excluded):
            ctx.reject(found)
        else:
            chunks += chunks_of(found, characters=options.chunk_characters, overlap=options.chunk_overlap)
    shop = Workshop(options, ctx, wanted, generator="documents", rows_per_item=options.rows_per_request)

    async def work_on(number: int) -> Work:
        return await _questions(pen, chunks[number], ctx.task.system_prompt, number)

    await shop.write(work_on, range(len(chunks)))
    return ctx.task


async def _questions(pen: Pen, chunk: Chunk, system_prompt: str | None, number: int) -> Work:
    count = pen.options.rows_per_request
    values = {"text": chunk.text, "document": chunk.name, "num_rows": count}
    schema = array_of(object_of(type=STRING, question=STRING), count)
    request = pen.request("ask", values, number, schema=schema)
    pieces, completion = await pen.ask_form(request, partial(parse_objects, fields=_FIELDS))
    drafts: list[Piece] = []
    for piece in within(pieces, count):
        drafts.append(await _answered(pen, chunk, piece, number) if isinstance(piece, Row) else piece)
    place = {**chunk.lineage.metadata(), "document": chunk.name, "characters": [chunk.start, chunk.end]}
    origin = f"document:{chunk.name}"  # questions on one document stay on one side of a split
    return Work(
        tuple(drafts), Frame(system_prompt, origin, metadata=place, licence=chunk.lineage.licence), completion.text
    )


async def _answered(pen: Pen, chunk: Chunk, row: Row, number: int) -> Draft:
    kind, question = str(row.input["type"]).strip(), str(row.input["question"]).strip()
    asked = Message(role="user", content=question)
    if found := _POINTS_AT_TEXT.search(question):
        detail = f"nobody who has not seen it can tell what {found.group()!r} is"
        return Draft((asked,), {"question_type": kind}, ("points_at_text", detail))
    values = {"text": chunk.text, "document": chunk.name, "question": question}
    completion = await pen.ask(pen.request("answer", values, number, temperature=0.0))
    text = without_thoughts(completion.text)
    fault = None
    if _NOT_THERE.search(text):
        fault = "not_in_text", "the text does not hold the answer"
    elif completion.finish_reason == "length":
        fault = "cut_off", f"the answer is longer than max_tokens: {pen.options.max_tokens}"
    return Draft((asked, Message(role="assistant", content=text)), {"question_type": kind}, fault)
