"""Talks of several turns between a person and the assistant, in three forms.

transcript: one answer holds the whole talk (the form of BELLE's Generated Chat). self_chat: one teacher writes the
person's turns from the transcript so far and the assistant's turns from the real chat history (Baize, Xu et al. 2023).
two_teachers: the same, with another teacher as the person (UltraChat, Ding et al. 2023).

A talk starts from a seed, where there are seeds (they take turns), else from the task. It has two exchanges at least
where `max_rounds` allows, and ends when the person is content.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.generating.asking import Pen, TeacherFailed
from tunesmith.generating.constraints import STRING, array_of, object_of
from tunesmith.generating.distill import require_task
from tunesmith.generating.examples import Example, example_of
from tunesmith.generating.gate import Draft
from tunesmith.generating.parsing import Broken, without_thoughts
from tunesmith.generating.seeds import frame_of
from tunesmith.generating.texts import plain_text, transcript
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Completion, Message, Task

END = "[END]"
_NAMES = {"en": ("User", "Assistant", ": "), "zh": ("用户", "助手", "：")}


async def dialogue(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` talks are accepted or a hard stop is met. One talk an item.

    Raises RecipeError where there is neither a seed nor a task description.
    """
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    if not seeds:
        require_task(ctx, "dialogue without examples")
    pen = Pen.of(options, ctx, "dialogue")
    order = pen.rng("all", "order").sample(seeds, len(seeds))
    shop = Workshop(
        options, ctx, wanted, generator="dialogue", rows_per_item=1, slots=options.dialogue_form != "transcript"
    )

    async def work_on(number: int) -> Work:
        shown = [order[number % len(order)]] if order else []
        num_exchanges = pen.rng(number, "length").randint(min(2, options.max_rounds), options.max_rounds)
        frame = frame_of(shown, ctx.task, form=options.dialogue_form)
        if options.dialogue_form == "transcript":
            return await _whole(pen, shown, num_exchanges, number)
        turns = await _alternated(pen, ctx, shown, frame.system_prompt, num_exchanges, number)
        if not turns:
            return Work((Broken("unreadable", "the user's first message is empty", ""),), frame)
        return Work((Draft(tuple(turns)),), frame, turns[-1].content)

    await shop.write(work_on)
    return ctx.task


async def _whole(pen: Pen, shown: Sequence[Example], num_exchanges: int, number: int) -> Work:
    frame = frame_of(shown, pen.task, form="transcript")
    values = {
        "topic": shown[0].input if shown else None,
        "num_exchanges": num_exchanges,
        "system_prompt": frame.system_prompt,
    }
    schema = array_of(object_of(user=STRING, assistant=STRING), num_exchanges)
    found, completion = await pen.ask_form(pen.request("whole", values, number, schema=schema), _one_talk)
    pieces = [talk if isinstance(talk, Broken) else _draft(talk, num_exchanges) for talk in found]
    return Work(tuple(pieces), frame, completion.text)


def _one_talk(text: str, *, cut: bool) -> list[list[Message] | Broken]:
    return [transcript(text, cut=cut)]


def _draft(turns: Sequence[Message], num_exchanges: int) -> Draft:
    kept = turns[: 2 * num_exchanges]
    fault = None
    if len(kept) < 4 <= 2 * num_exchanges:
        fault = "too_short", f"one exchange, asked for {num_exchanges}"
    return Draft(tuple(kept), {"num_exchanges": len(kept) // 2}, fault)


async def _alternated(
    pen: Pen,
    ctx: GenerationContext,
    shown: Sequence[Example],
    system_prompt: str | None,
    num_exchanges: int,
    number: int,
) -> list[Message]:
    turns: list[Message] = []
    for _ in range(num_exchanges):
        text = await _user_turn(pen, ctx, shown, turns, number)
        if not text:
            break
        turns.append(Message(role="user", content=text))
        completion = await pen.reply(turns, system_prompt, number)
        turns.append(Message(role="assistant", content=without_thoughts(completion.text)))
        if completion.finish_reason == "length" or not turns[-1].content:
            return turns[:-2]  # a reply that was cut ends the talk before it
    return turns


async def _user_turn(
    pen: Pen, ctx: GenerationContext, shown: Sequence[Example], turns: Sequence[Message], number: int
) -> str:
    """The person's next message, "" where there is nothing left to ask."""
    values = {
        "topic": shown[0].input if shown else None,
        "transcript": "\n".join(_line(turn, pen.options.language) for turn in turns),
    }
    request = pen.request("user_turn", values, number, system="user_system")
    if ctx.user_client is None:
        completion = await pen.ask(request)
    else:
        completion = _or_fail(await ctx.user_client.ask(request))
    text = plain_text(completion.text)
    person, assistant, colon = _NAMES[pen.options.language]
    text = text.removeprefix(person + colon.strip()).strip()
    text = text.split(f"\n{assistant}{colon.strip()}")[0].strip()  # a teacher that answered itself
    return "" if text.upper().startswith(END) else text.replace(END, "").strip()


def _or_fail(completion: Completion) -> Completion:
    if completion.finish_reason == "error":
        raise TeacherFailed(completion.error or "the teacher that plays the user failed without a reason")
    return completion


def _line(turn: Message, language: str) -> str:
    person, assistant, colon = _NAMES[language]
    return f"{person if turn.role == 'user' else assistant}{colon}{turn.content}"
