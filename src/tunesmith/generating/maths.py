"""School maths whose answers are checked, which BELLE's school_math set was not.

arithmetic: the teacher gives question, solution, the whole calculation as one expression, and the answer. Kept where
the expression comes to the answer, the solution ends in it, and every `a * b = c` in the solution holds.
majority: the teacher writes questions; each is solved `num_votes` times, and the first solution with the answer that
most of them give is kept (self-consistency, Wang et al. 2022), where `min_agreement` of all solutions give it.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import partial
from typing import Any

from tunesmith.generating.arithmetic import evaluate, final_number, number_in, wrong_equation
from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import STRING, array_of, object_of
from tunesmith.generating.gate import Draft, Frame, Piece
from tunesmith.generating.parsing import Row, parse_objects, without_thoughts
from tunesmith.generating.texts import list_of_texts
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Message, Task

_FIELDS = {
    "question": ("problem", "题目", "问题"),
    "solution": ("steps", "解答", "步骤"),
    "expression": ("calculation", "算式"),
    "answer": ("result", "答案"),
}


async def maths(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` problems are accepted or a hard stop is met. Needs no seeds."""
    pen = Pen.of(options, ctx, "maths")
    shop = Workshop(options, ctx, wanted, generator="maths", rows_per_item=options.rows_per_request)

    async def work_on(number: int) -> Work:
        topic = pen.rng(number, "topic").choice(pen.prompt.lines("topics"))
        grade = pen.rng(number, "grade").choice(pen.prompt.lines("grades"))
        values = {"topic": topic, "grade": grade, "num_rows": options.rows_per_request}
        frame = Frame(ctx.task.system_prompt, metadata={"topic": topic, "check": options.answer_check})
        if options.answer_check == "arithmetic":
            return await _checked_by_arithmetic(pen, values, frame, number)
        return await _checked_by_majority(pen, values, frame, number)

    await shop.write(work_on)
    return ctx.task


async def _checked_by_arithmetic(pen: Pen, values: dict[str, object], frame: Frame, number: int) -> Work:
    problem = object_of(question=STRING, solution=STRING, expression=STRING, answer=STRING)
    schema = array_of(problem, pen.options.rows_per_request)
    request = pen.request("problems", values, number, schema=schema)
    pieces, completion = await pen.ask_form(request, partial(parse_objects, fields=_FIELDS))
    drafts = [_draft(piece.input) if isinstance(piece, Row) else piece for piece in pieces]
    return Work(tuple(drafts), frame, completion.text)


def _draft(problem: dict[str, Any]) -> Draft:
    question, solution, expression, answer = (_text(problem[name]) for name in _FIELDS)
    turns = (Message(role="user", content=question), Message(role="assistant", content=solution))
    return Draft(turns, {"expression": expression, "answer": answer}, _fault(solution, expression, answer))


def _fault(solution: str, expression: str, answer: str) -> tuple[str, str] | None:
    value, stated = evaluate(expression), number_in(answer)
    if value is None:
        return "no_arithmetic", f"the expression cannot be run: {expression[:200]!r}"
    if stated is None:
        return "no_answer", f"the answer is not one number: {answer[:100]!r}"
    if not _same(value, stated):
        return "wrong_answer", f"{expression} = {_shown(value)}, the answer says {answer}"
    if wrong := wrong_equation(solution):
        return "wrong_step", f"the solution says {wrong}"
    said = final_number(solution)
    if said is None or not (_same(value, said) or _same(stated, said)):
        found = "no number" if said is None else _shown(said)
        return "wrong_solution", f"the solution ends in {found}, expected {_shown(value)}"
    return None


async def _checked_by_majority(pen: Pen, values: dict[str, object], frame: Frame, number: int) -> Work:
    schema = array_of(STRING, pen.options.rows_per_request)
    request = pen.request("questions", values, number, schema=schema)
    found, completion = await pen.ask_form(request, partial(list_of_texts, most=pen.options.rows_per_request))
    pieces: list[Piece] = []
    for question in found:
        pieces.append(await _voted(pen, question, number) if isinstance(question, str) else question)
    return Work(tuple(pieces), frame, completion.text)


async def _voted(pen: Pen, question: str, number: int) -> Draft:
    count = pen.options.num_votes
    solutions: list[tuple[Fraction | None, str]] = []
    for vote in range(count):
        request = pen.request("solve", {"question": question}, number * count + vote, system="solve_system")
        completion = await pen.ask(request)
        text = without_thoughts(completion.text)
        whole = completion.finish_reason != "length"
        solutions.append((final_number(text) if whole else None, text))
    votes = Counter(value for value, _ in solutions if value is not None)
    winner, num_votes = votes.most_common(1)[0] if votes else (None, 0)
    first = next((text for value, text in solutions if value == winner and winner is not None), solutions[0][1])
    fault = None
    if winner is None or num_votes < pen.options.min_agreement * count or num_votes < 2:
        shown = ", ".join(f"{_shown(value)} x{times}" for value, times in votes.most_common()) or "no number"
        fault = "no_majority", f"{num_votes} of {count} answers agree ({shown}), needed {pen.options.min_agreement:g}"
    elif wrong := wrong_equation(first):
        fault = "wrong_step", f"the solution says {wrong}"
    turns = (Message(role="user", content=question), Message(role="assistant", content=first))
    agreement = round(num_votes / count, 4)
    return Draft(turns, {"answer": _shown(winner) if winner is not None else "", "agreement": agreement}, fault)


def _same(value: Fraction, stated: Fraction) -> bool:
    """Equal, or equal once rounded to the hundredths a teacher writes."""
    return value == stated or (stated.denominator != 1 and abs(value - stated) <= Fraction(1, 200))


def _shown(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):g}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    return value.strip() if isinstance(value, str) else str(value)
