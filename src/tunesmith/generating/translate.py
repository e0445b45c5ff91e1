"""Rows in another language: every turn translated, or the user's turns translated and answered anew (the two scripts of
Luotuo, 2023). One request a turn; a row keeps the origin of the row it was made from, so a split never parts them."""

from __future__ import annotations

from tunesmith.errors import DataError
from tunesmith.generating.asking import Pen
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Conversation, Message, Task

_MIN_COMPARED = 24  # characters: shorter texts may be the same in two languages


async def translate(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """One seed an item, in their order, until `wanted` rows are accepted. Raises DataError without seeds."""
    seeds = [seed for seed in ctx.seeds if any(turn.role == "user" for turn in seed.messages)]
    if not seeds:
        raise DataError("translate needs rows to translate, and there is none", where="recipe.ingest.files")
    pen = Pen.of(options, ctx, "translate")
    shop = Workshop(options, ctx, wanted, generator="translate", rows_per_item=1, compare=False)

    async def work_on(number: int) -> Work:
        seed = seeds[number]
        system_prompt = next((turn.content for turn in seed.messages if turn.role == "system"), ctx.task.system_prompt)
        draft = await _translated(pen, seed, system_prompt, number)
        metadata = {"seeds": [seed.id], "language": options.target_language, "reanswered": options.reanswer}
        frame = Frame(system_prompt, seed.origin, seed.split, metadata)
        return Work((draft,), frame, draft.messages[-1].content)

    await shop.write(work_on, range(len(seeds)))
    return ctx.task


async def _translated(pen: Pen, seed: Conversation, system_prompt: str | None, number: int) -> Draft:
    turns: list[Message] = []
    fault: tuple[str, str] | None = None
    for turn in seed.messages:
        if turn.role == "system":
            continue
        if turn.role == "tool" or turn.tool_calls:
            return Draft(tuple(turns) or (turn,), fault=("tool_calls", "a row with tool calls is not translated"))
        if turn.role == "assistant" and pen.options.reanswer:
            request = pen.reply_request(turns, system_prompt, number)
        else:
            values = {"language": pen.options.target_language, "text": turn.content}
            request = pen.request("turn", values, number, temperature=0.0)
        completion = await pen.ask(request)
        text = _unmarked(without_thoughts(completion.text))
        if completion.finish_reason == "length":
            fault = "cut_off", f"turn {len(turns)} is longer than max_tokens: {pen.options.max_tokens}"
        elif turn.role == "user" and text == turn.content.strip() and len(text) >= _MIN_COMPARED:
            fault = "untranslated", f"turn {len(turns)} came back as it was"
        turns.append(Message(role=turn.role, content=text))
        if fault is not None:
            break
    return Draft(tuple(turns), fault=fault)


def _unmarked(text: str) -> str:
    return text.strip().removeprefix("<text>").removesuffix("</text>").strip()
