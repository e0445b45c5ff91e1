"""Evol-Instruct (WizardLM, Xu et al. 2023): an instruction is made harder (in depth) or a rarer one is made from it (in
breadth), then answered; each result is the start of the next round, and what fails leaves its start unchanged.

The four rules of elimination (section 3.2 of the paper), in the order they can be checked: the new prompt copies words
of the request for it (copied_prompt); a judge finds no gain over the old one (no_gain); the reply says sorry in fewer
than 80 words (sorry); the reply is nothing but punctuation and stop words (says_nothing).
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from tunesmith.errors import RecipeError, nearest
from tunesmith.generating.asking import Pen
from tunesmith.generating.examples import Example
from tunesmith.generating.gate import Draft, Piece
from tunesmith.generating.parsing import without_thoughts
from tunesmith.generating.seeds import frame_of, seed_examples
from tunesmith.generating.texts import plain_text, verdict
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Message, Task

OPERATIONS = ("constrain", "deepen", "concretise", "reason", "complicate", "breadth")
SORRY_WORDS = 80
_VERDICT_TOKENS = 16
_COPIED = re.compile(
    r"#?(?:given|rewritten|created|new|original) (?:prompt|instruction)#?|#(?:prompt|instruction)#|"
    r"(?:原|给定的?|改写后?的?|新的?)(?:指令|提示)[:：]|改写后的版本",
    re.IGNORECASE,
)
_SORRY = re.compile(r"\bsorry\b|\bapologi[sz]e\b|抱歉|对不起", re.IGNORECASE)
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+(?:['’-][^\W_]+)*")


async def evolve(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Evolve each seed up to `max_rounds` times, the seeds in turn, until `wanted` rows are accepted.

    Raises DataError without seeds, RecipeError for an unknown operation.
    """
    _check_operations(options)
    seeds = seed_examples(ctx, "evolve")
    pen = Pen.of(options, ctx, "evolve")
    order = pen.rng("all", "order").sample(seeds, len(seeds))
    shop = Workshop(
        options, ctx, wanted, generator="evolve", rows_per_item=options.max_rounds, examples=seeds, compare=False
    )

    async def work_on(number: int) -> Work:
        seed = order[number % len(order)]
        pieces = await _evolve_seed(pen, seed, number)
        return Work(tuple(pieces), frame_of([seed], ctx.task), seed.input)

    await shop.write(work_on)
    return ctx.task


def _check_operations(options: Generate) -> None:
    for name in options.operations:
        if name not in OPERATIONS:
            close = nearest(name, OPERATIONS)
            raise RecipeError(
                f"there is no operation named {name!r}",
                where="recipe.generate.operations",
                hint=f"did you mean {close!r}?" if close else f"known: {', '.join(OPERATIONS)}",
            )
    if not options.operations:
        raise RecipeError("no operation is named", where="recipe.generate.operations")


async def _evolve_seed(pen: Pen, seed: Example, number: int) -> list[Piece]:
    current = seed.input
    system_prompt = frame_of([seed], pen.task).system_prompt
    drafts: list[Piece] = []
    for step in range(pen.options.max_rounds):
        operation = pen.rng(f"{number}.{step}", "operation").choice(pen.options.operations)
        draft = await _evolve_once(pen, current, operation, system_prompt, number * pen.options.max_rounds + step)
        evolved = draft.messages[0].content
        drafts.append(
            Draft(draft.messages, {"operation": operation, "round": step, "evolved_from": current}, draft.fault)
        )
        if draft.fault is None:
            current = evolved
    return drafts


async def _evolve_once(pen: Pen, current: str, operation: str, system_prompt: str | None, number: int) -> Draft:
    section = "create" if operation == "breadth" else "rewrite"
    values = {"instruction": current, "how": pen.prompt.sections[operation]}
    completion = await pen.ask(pen.request(section, values, number))
    evolved = plain_text(completion.text)
    asked = Message(role="user", content=evolved)
    fault = _prompt_fault(evolved, cut=completion.finish_reason == "length")
    if fault is None:
        compared = {"instruction": current, "evolved": evolved}
        request = pen.request("compare", compared, number, temperature=0.0, max_tokens=_VERDICT_TOKENS)
        is_equal = verdict((await pen.ask(request)).text)
        if is_equal is None:
            fault = "no_verdict", "the judge said neither yes nor no"
        elif is_equal:
            fault = "no_gain", "the judge finds the same conditions, depth and breadth as before"
    if fault is not None:
        return Draft((asked,), fault=fault)
    completion = await pen.reply([asked], system_prompt, number)
    reply = without_thoughts(completion.text)
    fault = reply_fault(reply)
    if completion.finish_reason == "length":
        fault = "cut_off", f"the reply is longer than max_tokens: {pen.options.max_tokens}"
    return Draft((asked, Message(role="assistant", content=reply)), fault=fault)


def _prompt_fault(evolved: str, *, cut: bool) -> tuple[str, str] | None:
    if not evolved:
        return "empty", "no new instruction was written"
    if cut:
        return "cut_off", "the new instruction was cut by its length"
    if found := _COPIED.search(evolved):
        return "copied_prompt", f"says {found.group()!r}"
    return None


def reply_fault(reply: str) -> tuple[str, str] | None:
    """Rules two and three: an apology of fewer than 80 words, or nothing but punctuation and stop words."""
    words = _WORD.findall(reply)
    if (found := _SORRY.search(reply)) and len(words) < SORRY_WORDS:
        return "sorry", f"says {found.group()!r} in {len(words)} words"
    bare = _WORD.sub(lambda word: "" if word.group().lower() in _stop_words() else word.group(), reply)
    if not _WORD.search(bare):
        return "says_nothing", "the reply holds only punctuation and stop words"
    return None


@cache
def _stop_words() -> frozenset[str]:
    text = (files("tunesmith.generating") / "stop_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
