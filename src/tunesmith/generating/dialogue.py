"""Talks of several turns between a person and the assistant, in four forms.

transcript: one answer holds the whole talk (Baize's first form, Xu et al. 2023). generated_chat: the same between two
people with names and roles, of whom the second becomes the assistant (BELLE's Generated Chat). self_chat: one teacher
writes the person's turns from the transcript so far and the assistant's turns from the real chat history (Baize's second
form). two_teachers: the same, with another teacher as the person (UltraChat, Ding et al. 2023).

A talk starts from a seed, where there are seeds (they take turns), else from the task; or from an opening question of
the tree of topics (topic_tree.py). It has two exchanges at least where `max_rounds` allows, and ends when the person is
content.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from tunesmith.generating.asking import Pen, TeacherFailed
from tunesmith.generating.constraints import STRING, array_of, object_of
from tunesmith.generating.distill import require_task
from tunesmith.generating.examples import Example, example_of
from tunesmith.generating.gate import Draft, Frame
from tunesmith.generating.parsing import Broken, without_thoughts
from tunesmith.generating.roles import draw_cast
from tunesmith.generating.seeds import frame_of
from tunesmith.generating.texts import plain_text, transcript
from tunesmith.generating.topic_tree import TopicTree
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext, TeacherClient
from tunesmith.recipe import Generate
from tunesmith.types import Completion, Message, Task

END = "[END]"
_NAMES = {"en": ("User", "Assistant", ": "), "zh": ("用户", "助手", "：")}
_IN_ONE_ANSWER = ("transcript", "generated_chat")


@dataclass(frozen=True)
class _Start:
    """What a talk starts from. opening: the person's first message, where it is given; broken: pieces of the tree's lists
    that could not be read on the way here, and answer: where these were."""

    topic: str | None
    frame: Frame
    opening: str | None = None
    broken: tuple[Broken, ...] = ()
    answer: str = ""


_StartOf = Callable[[int], Awaitable[_Start]]


async def dialogue(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` talks are accepted or a hard stop is met. One talk an item.

    Raises RecipeError where a talk is to start from a seed, and there is neither a seed nor a task description.
    """
    pen = Pen.of(options, ctx, "dialogue")
    start_of = _from_tree(options, ctx) if options.dialogue_topics == "tree" else _from_seeds(pen, ctx)
    slots = options.dialogue_form not in _IN_ONE_ANSWER
    shop = Workshop(options, ctx, wanted, generator="dialogue", rows_per_item=1, slots=slots)

    async def work_on(number: int) -> Work:
        start = await start_of(number)
        if start.topic is None and options.dialogue_topics == "tree":  # the lists are shorter than they should be
            return Work(start.broken, start.frame, start.answer)
        num_exchanges = pen.rng(number, "length").randint(min(2, options.max_rounds), options.max_rounds)
        if options.dialogue_form == "transcript":
            work = await _whole(pen, start, num_exchanges, number)
        elif options.dialogue_form == "generated_chat":
            work = await _between_two(pen, start, num_exchanges, number)
        else:
            work = await _turn_by_turn(pen, ctx.user_client or ctx.client, start, num_exchanges, number)
        return replace(work, pieces=(*start.broken, *work.pieces))

    await shop.write(work_on)
    return ctx.task


def _from_seeds(pen: Pen, ctx: GenerationContext) -> _StartOf:
    seeds = [example for seed in ctx.seeds if (example := example_of(seed)) is not None]
    if not seeds:
        require_task(ctx, "dialogue without examples")
    order: Sequence[Example] = pen.rng("all", "order").sample(seeds, len(seeds))

    async def start_of(number: int) -> _Start:
        shown = [order[number % len(order)]] if order else []
        frame = frame_of(shown, ctx.task, form=pen.options.dialogue_form)
        return _Start(shown[0].input if shown else None, frame)

    return start_of


def _from_tree(options: Generate, ctx: GenerationContext) -> _StartOf:
    tree = TopicTree(options, ctx)

    async def start_of(number: int) -> _Start:
        leaf = await tree.leaf(number)
        place = {"topic": leaf.topic, "subtopic": leaf.subtopic}
        frame = frame_of([], ctx.task, form=options.dialogue_form, **place)
        return _Start(leaf.question, frame, leaf.question, leaf.broken, leaf.answer)

    return start_of


async def _whole(pen: Pen, start: _Start, num_exchanges: int, number: int) -> Work:
    values = {"topic": start.topic, "num_exchanges": num_exchanges, "system_prompt": start.frame.system_prompt}
    return await _in_one_answer(pen, "whole", values, start.frame, num_exchanges, number, names=None)


async def _between_two(pen: Pen, start: _Start, num_exchanges: int, number: int) -> Work:
    """The row's system message says who the assistant is, and to whom it talks."""
    cast = draw_cast(pen.rng(number, "cast"), pen.options.language)
    people = asdict(cast)
    values = {
        "topic": start.topic,
        "num_exchanges": num_exchanges,
        "system_prompt": start.frame.system_prompt,
        **people,
    }
    system = "\n\n".join(filter(None, (start.frame.system_prompt, pen.fill("role", people))))
    frame = replace(start.frame, system_prompt=system, metadata={**start.frame.metadata, "cast": people})
    return await _in_one_answer(pen, "named", values, frame, num_exchanges, number, names=cast.names)


async def _in_one_answer(
    pen: Pen,
    section: str,
    values: Mapping[str, object],
    frame: Frame,
    num_exchanges: int,
    number: int,
    *,
    names: tuple[str, str] | None,
) -> Work:
    def read(text: str, *, cut: bool) -> list[list[Message] | Broken]:
        return [transcript(text, cut=cut, names=names)]

    user, assistant = names or ("user", "assistant")
    schema = array_of(object_of(**{user: STRING, assistant: STRING}), num_exchanges)
    found, completion = await pen.ask_form(pen.request(section, values, number, schema=schema), read)
    pieces = [talk if isinstance(talk, Broken) else _draft(talk, num_exchanges) for talk in found]
    return Work(tuple(pieces), frame, completion.text)


def _draft(turns: Sequence[Message], num_exchanges: int) -> Draft:
    kept = turns[: 2 * num_exchanges]
    fault = None
    if len(kept) < 4 <= 2 * num_exchanges:
        fault = "too_short", f"one exchange, asked for {num_exchanges}"
    return Draft(tuple(kept), {"num_exchanges": len(kept) // 2}, fault)


async def _turn_by_turn(pen: Pen, person: TeacherClient, start: _Start, num_exchanges: int, number: int) -> Work:
    turns: list[Message] = []
    next_message = partial(_user_turn, pen, person, start.topic)
    for _ in range(num_exchanges):
        text = start.opening if start.opening and not turns else await next_message(turns, number)
        if not text:
            break
        turns.append(Message(role="user", content=text))
        completion = await pen.reply(turns, start.frame.system_prompt, number)
        turns.append(Message(role="assistant", content=without_thoughts(completion.text)))
        if completion.finish_reason == "length" or not turns[-1].content:
            turns = turns[:-2]  # a reply that was cut ends the talk before it
            break
    if not turns:
        return Work((Broken("unreadable", "the user's first message is empty", ""),), start.frame)
    return Work((Draft(tuple(turns)),), start.frame, turns[-1].content)


async def _user_turn(pen: Pen, person: TeacherClient, topic: str | None, turns: Sequence[Message], number: int) -> str:
    """The person's next message, "" where there is nothing left to ask."""
    values = {"topic": topic, "transcript": "\n".join(_line(turn, pen.options.language) for turn in turns)}
    request = pen.request("user_turn", values, number, system="user_system")
    text = plain_text(_or_fail(await person.ask(request)).text)
    user, assistant, colon = _NAMES[pen.options.language]
    text = text.removeprefix(user + colon.strip()).strip()
    text = text.split(f"\n{assistant}{colon.strip()}")[0].strip()  # a teacher that answered itself
    return "" if text.upper().startswith(END) else text.replace(END, "").strip()


def _or_fail(completion: Completion) -> Completion:
    if completion.finish_reason == "error":
        raise TeacherFailed(completion.error or "the teacher that plays the user failed without a reason")
    return completion


def _line(turn: Message, language: str) -> str:
    user, assistant, colon = _NAMES[language]
    return f"{user if turn.role == 'user' else assistant}{colon}{turn.content}"
