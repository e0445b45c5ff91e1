"""Magpie (Xu et al. 2024): a tuned model that is given nothing but the header of a user turn writes what users write.
Then it answers it. No seeds, no prompt: what comes out is what the teacher was tuned on.

With `turns` above 1 the header is put after the answer again, so that the model writes the person's next message too
(the paper calls it Magpie-MT); a system line that asks for follow-up questions keeps it with the matter.

The header comes from the teacher's chat template, so only a teacher in this process can be asked; a hosted chat
endpoint adds a header of its own and is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.generating.asking import Pen
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Message, Task

_Fault = tuple[str, str]  # reason, detail


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
    pen = Pen.of(options, ctx, "magpie")
    shop = Workshop(options, ctx, wanted, generator="magpie", rows_per_item=1, slots=options.turns > 1)

    async def work_on(number: int) -> Work:
        draft = await _talk(pen, number)
        return Work((draft,), Frame(ctx.task.system_prompt), draft.messages[-1].content)

    await shop.write(work_on)
    return ctx.task


async def _talk(pen: Pen, number: int) -> Draft:
    """Exchanges until `turns` are written or one has a fault. A fault of the first one is the row's; a later one ends the
    row before it, and is named in its metadata."""
    talk: tuple[Message, ...] = ()
    ended: dict[str, Any] = {}
    for _ in range(pen.options.turns):
        exchange, fault = await _exchange(pen, talk, number)
        if fault is not None and not talk:
            return Draft(exchange, fault=fault)
        if fault is not None:
            ended = {"ended_by": fault[0]}
            break
        talk += exchange
    return Draft(talk, {"num_exchanges": len(talk) // 2, **ended} if pen.options.turns > 1 else {})


async def _exchange(pen: Pen, talk: Sequence[Message], number: int) -> tuple[tuple[Message, ...], _Fault | None]:
    """The next message of the person, its reply where there is one, and what is wrong with them."""
    header = _header(pen, talk)
    completion = await pen.ask(pen.request_of((*header, *talk), number).model_copy(update={"prefix_only": True}))
    asked = Message(role="user", content=completion.text.strip())
    if completion.finish_reason == "length":
        return (asked,), ("cut_off", f"the message is longer than max_tokens: {pen.options.max_tokens}")
    if fault := _message_fault(asked.content, talk):
        return (asked,), fault
    completion = await pen.reply([*talk, asked], pen.task.system_prompt, number)
    reply = Message(role="assistant", content=without_thoughts(completion.text))
    if completion.finish_reason == "length":
        return (asked, reply), ("cut_off", f"the reply is longer than max_tokens: {pen.options.max_tokens}")
    return (asked, reply), None if reply.content else ("empty", "the reply is empty")


def _header(pen: Pen, talk: Sequence[Message]) -> tuple[Message, ...]:
    """What stands before the talk while the person's next message is written."""
    follow_up = pen.fill("follow_up", {}) if talk and pen.options.follow_up_system else None
    system = "\n\n".join(filter(None, (pen.task.system_prompt, follow_up)))
    return (Message(role="system", content=system),) if system else ()


def _message_fault(written: str, talk: Sequence[Message]) -> _Fault | None:
    if not written:
        return "empty", "the teacher ended the user's turn at once"
    if written.endswith((":", "：")):
        return "ends_in_colon", f"what should follow is missing: {written[-60:]!r}"
    said = {" ".join(turn.content.lower().split()) for turn in talk if turn.role == "user"}
    if " ".join(written.lower().split()) in said:
        return "repeats", "the person says the same again"
    return None
