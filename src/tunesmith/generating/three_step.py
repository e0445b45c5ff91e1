"""Self-Instruct as its paper has it (Wang et al. 2022, section 3.1): new instructions from a few old ones, the question
whether each is a classification, then cases for it. For a classification the label comes first and the input is
written to deserve it, because input first would give the commonest label over and over.

Instructions are shown from the seeds and, from the second round on, one in four from those kept before: six and two
where eight are shown. Rejected beside what the gate rejects: an output that ends in a colon, and all cases of one
instruction that give one input different outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import STRING, array_of, object_of
from tunesmith.generating.examples import Example
from tunesmith.generating.gate import Draft, Frame, Piece
from tunesmith.generating.parsing import Row, parse_objects, within
from tunesmith.generating.seeds import frame_of, seed_examples
from tunesmith.generating.texts import list_of_texts, verdict
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.types import Message, Task

MAX_CASES = 5
_VERDICT_TOKENS = 16
_LABEL_KEYS = ("label", "output", "class", "标签", "输出")


async def three_step(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. `rows_per_request` counts instructions.

    Raises DataError where no seed has a user message and a reply, TeacherError where the teacher is of no use.
    """
    seeds = seed_examples(ctx, "three_step")
    pen = Pen.of(options, ctx, "three_step")
    shop = Workshop(
        options, ctx, wanted, generator="three_step", rows_per_item=options.rows_per_request * MAX_CASES, examples=seeds
    )

    async def work_after(number: int, kept: tuple[Example, ...], round_number: int) -> Work:
        drawn, again, shown = _shown(pen, seeds, kept, number)
        values = {
            "num_shown": len(shown),
            "examples": "\n".join(f"{place}. {text}" for place, text in enumerate(shown, 1)),
            "num_rows": options.rows_per_request,
        }
        schema = array_of(STRING, options.rows_per_request)
        request = pen.request("instructions", values, number, schema=schema)
        found, completion = await pen.ask_form(request, partial(list_of_texts, most=options.rows_per_request))
        pieces: list[Piece] = []
        for instruction in found:
            pieces += await _cases(pen, instruction, number) if isinstance(instruction, str) else [instruction]
        return Work(tuple(pieces), _frame(drawn, again, ctx.task, round_number), completion.text)

    await shop.write_in_rounds(work_after)
    return ctx.task


def _shown(
    pen: Pen, seeds: Sequence[Example], kept: Sequence[Example], number: int
) -> tuple[list[Example], list[Example], list[str]]:
    """Seeds, rows that were kept before, and the instructions of both."""
    total = pen.options.num_seeds_shown
    num_kept = min(total // 4, len(kept))
    rng = pen.rng(number, "seeds")
    drawn = rng.sample(list(seeds), min(total - num_kept, len(seeds)))
    again = rng.sample(list(kept), num_kept)
    instructions = [row.conversation.metadata.get("instruction", row.input) for row in again]
    lines = [" ".join(text.split()) for text in ([seed.input for seed in drawn] + instructions)]
    return drawn, again, lines


def _frame(drawn: Sequence[Example], again: Sequence[Example], task: Task, round_number: int) -> Frame:
    """The seeds that kept rows were made from count too: their licences go on with what is made from those rows."""
    frame = frame_of(drawn, task, round=round_number)
    before = [seed for row in again for seed in row.conversation.metadata["seeds"]]
    return replace(
        frame, metadata={**frame.metadata, "seeds": list(dict.fromkeys([*frame.metadata["seeds"], *before]))}
    )


async def _cases(pen: Pen, instruction: str, number: int) -> list[Piece]:
    values = {"instruction": instruction, "count": MAX_CASES}
    request = pen.request("classify", values, number, temperature=0.0, max_tokens=_VERDICT_TOKENS)
    is_classification = verdict((await pen.ask(request)).text) is True
    if is_classification:
        fields = {"label": _LABEL_KEYS, "input": ("输入", "text")}
        schema = array_of(object_of(label=STRING, input={"type": "string"}), MAX_CASES)
        request = pen.request("label_first", values, number, schema=schema)
    else:
        fields = {"input": ("输入",), "output": ("response", "answer", "输出", "回答")}
        schema = object_of(input={"type": "string"}, output=STRING)
        request = pen.request("input_first", values, number, schema=schema)
    pieces, _ = await pen.ask_form(request, partial(parse_objects, fields=fields))
    pieces = within(pieces, MAX_CASES if is_classification else 1)
    rows = [piece for piece in pieces if isinstance(piece, Row)]
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[_text(row.input["input"])].add(_output(row.input))
    drafts = [_draft(instruction, row.input, answers, is_classification) for row in rows]
    return [*drafts, *(piece for piece in pieces if not isinstance(piece, Row))]


def _draft(instruction: str, value: dict[str, Any], answers: dict[str, set[str]], is_classification: bool) -> Draft:
    given, answer = _text(value["input"]), _output(value)
    fault = None
    if answer.endswith((":", "：")):
        fault = "ends_in_colon", f"the output breaks off: {answer[-60:]!r}"
    elif len(answers[given]) > 1:
        fault = "contradiction", f"one input has the outputs {', '.join(sorted(map(repr, answers[given])))}"
    elif given and given == answer:
        fault = "echo", "input and output are the same"
    asked = "\n\n".join(part for part in (instruction, given) if part)
    return Draft(
        (Message(role="user", content=asked), Message(role="assistant", content=answer)),
        {"instruction": instruction, "is_classification": is_classification},
        fault,
    )


def _output(value: dict[str, Any]) -> str:
    return _text(value.get("label", value.get("output")))


def _text(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else str(value)
    return "" if text.lower() in ("<noinput>", "noinput", "none", "n/a", "<无输入>", "无") else text
