"""Magpie (Xu et al. 2024): a tuned model that is given nothing but the header of a user turn writes what users write.
Then it answers it. No seeds, no prompt: what comes out is what the teacher was tuned on.

The header comes from the teacher's chat template, so only a teacher in this process can be asked; a hosted chat
endpoint adds a header of its own and is refused by name.
"""

from __future__ import annotations

from tunesmith.errors import RecipeError
from tunesmith.generating.asking import Pen
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.prompt_files import PromptFile
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Message, Task

_NO_PROMPT = PromptFile("magpie", frozenset(), {})


async def magpie(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. A system message steers what is written.

    Raises RecipeError for a teacher behind an endpoint.
    """
    if options.teacher.kind == "openai":
        raise RecipeError(
            "magpie continues the bare header of a user turn, which a chat endpoint does not take",
            where="recipe.generate.teacher.kind",
            hint="use `kind: local`, or another generator",
        )
    pen = Pen(options, ctx.task, ctx.rng_seed, _NO_PROMPT, ctx.client)
    shop = Workshop(options, ctx, wanted, generator="magpie", rows_per_item=1)
    system = ctx.task.system_prompt
    header = (Message(role="system", content=system),) if system else ()

    async def work_on(number: int) -> Work:
        request = pen.request_of(header, number).model_copy(update={"prefix_only": True})
        completion = await pen.ask(request)
        written = completion.text.strip()
        asked = Message(role="user", content=written)
        fault = None
        if completion.finish_reason == "length":
            fault = "cut_off", f"the message is longer than max_tokens: {options.max_tokens}"
        elif not written:
            fault = "empty", "the teacher ended the user's turn at once"
        elif written.endswith((":", "：")):
            fault = "ends_in_colon", f"what should follow is missing: {written[-60:]!r}"
        if fault is not None:
            return Work((Draft((asked,), fault=fault),), Frame(system), written)
        completion = await pen.reply([asked], system, number)
        if completion.finish_reason == "length":
            fault = "cut_off", f"the reply is longer than max_tokens: {options.max_tokens}"
        reply = Message(role="assistant", content=without_thoughts(completion.text))
        return Work((Draft((asked, reply), fault=fault),), Frame(system), completion.text)

    await shop.write(work_on)
    return ctx.task
