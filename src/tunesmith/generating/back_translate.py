"""Instructions for texts that people wrote (Humpback, Li et al. 2023): the text stays as it is and becomes the reply.

The teacher guesses the instruction, then scores the pair from 1 to 5; rows below `min_score` are rejected, and so are
those whose score cannot be read: a missing score is no score. Each row says that it is augmented data, and may have a
system message of its own, by which the model tells it from the examples, as in the paper.

With `score_rounds` above 1 texts without a kept row get another try. Where the paper trains the next round's model on
the examples and the pairs kept so far, the teacher is shown some of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from tunesmith.generating.asking import Pen
from tunesmith.generating.examples import Example, example_of
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.sources import Text, read_texts
from tunesmith.generating.terms import joined_licences, usable
from tunesmith.generating.texts import plain_text
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Excluded, Message, Task

SOURCE_CLASS = "augmented"
"""metadata.source_class of these rows. The examples have none."""

_SCORE_TOKENS = 16
_DIGIT = re.compile(r"(?<![\d.])([1-5])(?![\d])")


async def back_translate(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """One text of `generate.files` an item, in their order, round by round, until `wanted` rows are accepted. RecipeError
    without files."""
    pen = Pen.of(options, ctx, "back_translate")
    texts: list[Text] = []
    for found in usable(options, read_texts(ctx.files, generator="back_translate")):
        if isinstance(found, Excluded):
            ctx.reject(found)
        else:
            texts.append(found)
    shop = Workshop(options, ctx, wanted, generator="back_translate", rows_per_item=1)
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    for number in range(options.score_rounds):
        kept = tuple(shop.gate.accepted)
        done = {row.conversation.metadata["text_from"] for row in kept}
        items = [number * len(texts) + place for place, text in enumerate(texts) if text.where not in done]
        examples = (*seeds, *kept) if number else ()
        if await shop.write(partial(_pair, pen, texts, examples), items) < len(items):
            break  # enough rows, or a hard stop: a round looks at what a whole round left
    return ctx.task


async def _pair(pen: Pen, texts: Sequence[Text], examples: Sequence[Example], number: int) -> Work:
    text = texts[number % len(texts)]
    shown = pen.rng(number, "examples").sample(examples, min(pen.options.num_seeds_shown, len(examples)))
    lines = [pen.fill("example", {"text": each.output, "instruction": each.input}) for each in shown]
    request = pen.request("guess", {"text": text.text, "examples": "\n\n".join(lines)}, number)
    completion = await pen.ask(request)
    instruction = plain_text(completion.text)
    score, fault = None, None
    if completion.finish_reason == "length":
        fault = "cut_off", "the instruction was cut by its length"
    elif not instruction:
        fault = "empty", "no instruction was written"
    else:
        score, fault = await _score(pen, text, instruction, number)
    turns = (Message(role="user", content=instruction), Message(role="assistant", content=text.text))
    draft = Draft(turns, {"score": score, "score_round": 1 + number // len(texts)}, fault)
    return Work((draft,), _frame(pen, text, shown), completion.text)


async def _score(pen: Pen, text: Text, instruction: str, number: int) -> tuple[int | None, tuple[str, str] | None]:
    """Of 5, and why the pair is not kept."""
    values = {"text": text.text, "instruction": instruction}
    request = pen.request("score", values, number, temperature=0.0, max_tokens=_SCORE_TOKENS)
    answer = without_thoughts((await pen.ask(request)).text)
    found = _DIGIT.search(answer)
    if found is None:
        return None, ("no_score", f"expected a digit from 1 to 5, found {answer[:60]!r}")
    score, needed = int(found.group(1)), pen.options.min_score
    return score, None if score >= needed else ("low_score", f"the teacher gives {score} of 5, needed {needed}")


def _frame(pen: Pen, text: Text, shown: Sequence[Example]) -> Frame:
    """A row stands under the terms of its text and of what the teacher was shown with it."""
    own = pen.options.augmented_system_prompt
    brought = text.lineage.metadata()
    seeds = [*brought.pop("seeds", ()), *(seed for each in shown for seed in _seeds_of(each))]
    metadata = {**brought, "text_from": text.where, "source_class": SOURCE_CLASS}
    return Frame(
        pen.task.system_prompt if own is None else own,
        metadata={"seeds": list(dict.fromkeys(seeds)), **metadata} if seeds else metadata,
        licence=joined_licences([text.lineage.licence, *(each.conversation.licence for each in shown)]),
    )


def _seeds_of(example: Example) -> Sequence[str]:
    """Ids of the examples behind a row: of a pair that was kept in this run those it was made from, else its own."""
    row = example.conversation
    return row.metadata.get("seeds", ()) if row.metadata.get("source_class") == SOURCE_CLASS else (row.id,)
