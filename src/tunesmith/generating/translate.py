"""Rows in another language: every turn translated, or the user's turns translated and answered anew (the two scripts of
Luotuo, 2023). One request a turn; a row keeps the origin of the row it was made from, so a split never parts them."""

from __future__ import annotations

from tunesmith.errors import DataError
from tunesmith.generating.asking import Pen
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.translations import DetectLanguage, translation_fault
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Conversation, Message, Task


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
        draft = await _translated(pen, seed, system_prompt, number, ctx.detect_language)
        metadata = {"seeds": [seed.id], "language": options.target_language, "reanswered": options.reanswer}
        frame = Frame(system_prompt, seed.origin, seed.split, metadata)
        return Work((draft,), frame, draft.messages[-1].content)

    await shop.write(work_on, range(len(seeds)))
    return ctx.task


async def _translated(
    pen: Pen, seed: Conversation, system_prompt: str | None, number: int, detect: DetectLanguage | None
) -> Draft:
    turns: list[Message] = []
    fault: tuple[str, str] | None = None
    for turn in seed.messages:
        if turn.role == "system":
            continue
        if turn.role == "tool" or turn.tool_calls:
            return Draft(tuple(turns) or (turn,), fault=("tool_calls", "a row with tool calls is not translated"))
        if turn.role == "assistant" and pen.options.reanswer:
            completion = await pen.reply(turns, system_prompt, number)
        else:
            values = {"language": pen.options.target_language, "text": turn.content}
            completion = await pen.ask(pen.request("turn", values, number, temperature=0.0))
        text = _unmarked(without_thoughts(completion.text))
        if completion.finish_reason == "length":
            fault = "cut_off", f"turn {len(turns)} is longer than max_tokens: {pen.options.max_tokens}"
        else:
            is_answer = turn.role == "assistant" and pen.options.reanswer
            original = None if is_answer else turn.content
            wrong = translation_fault(text, original=original, target=pen.options.target_language, detect=detect)
            fault = ("untranslated", f"turn {len(turns)} {wrong}") if wrong else None
        turns.append(Message(role=turn.role, content=text))
        if fault is not None:
            break
    return Draft(tuple(turns), fault=fault)


def _unmarked(text: str) -> str:
    return text.strip().removeprefix("<text>").removesuffix("</text>").strip()
