"""Instructions for texts that people wrote (Humpback, Li et al. 2023): the text stays as it is and becomes the reply.

The teacher guesses the instruction, then scores the pair from 1 to 5; rows below 4 are rejected, and so are those whose
score cannot be read: a missing score is no score.
"""

from __future__ import annotations

import re

from tunesmith.generating.asking import Pen
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.sources import Text, read_texts
from tunesmith.generating.terms import usable
from tunesmith.generating.texts import plain_text
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Excluded, Message, Task

MIN_SCORE = 4
_SCORE_TOKENS = 16
_DIGIT = re.compile(r"(?<![\d.])([1-5])(?![\d])")


async def back_translate(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """One text of `generate.files` an item, in their order, until `wanted` rows are accepted. RecipeError without files."""
    pen = Pen.of(options, ctx, "back_translate")
    texts: list[Text] = []
    for found in usable(options, read_texts(ctx.files, generator="back_translate")):
        if isinstance(found, Excluded):
            ctx.reject(found)
        else:
            texts.append(found)
    shop = Workshop(options, ctx, wanted, generator="back_translate", rows_per_item=1)

    async def work_on(number: int) -> Work:
        text = texts[number]
        completion = await pen.ask(pen.request("guess", {"text": text.text}, number))
        instruction = plain_text(completion.text)
        turns = (Message(role="user", content=instruction), Message(role="assistant", content=text.text))
        score, fault = None, None
        if completion.finish_reason == "length":
            fault = "cut_off", "the instruction was cut by its length"
        elif not instruction:
            fault = "empty", "no instruction was written"
        else:
            values = {"text": text.text, "instruction": instruction}
            request = pen.request("score", values, number, temperature=0.0, max_tokens=_SCORE_TOKENS)
            answer = without_thoughts((await pen.ask(request)).text)
            found = _DIGIT.search(answer)
            score = int(found.group(1)) if found else None
            if score is None:
                fault = "no_score", f"expected a digit from 1 to 5, found {answer[:60]!r}"
            elif score < MIN_SCORE:
                fault = "low_score", f"the teacher gives {score} of 5, needed {MIN_SCORE}"
        frame = Frame(ctx.task.system_prompt, metadata={"text_from": text.where}, licence=text.lineage.licence)
        return Work((Draft(turns, {"score": score}, fault),), frame, completion.text)

    await shop.write(work_on, range(len(texts)))
    return ctx.task
