"""Rows from the answer backwards, for tasks whose answers are JSON objects with an `output_schema`. The fields that hold
one of few values, and identifiers, are drawn here; the teacher writes the message that deserves them and the fields
that are left (label first, as Self-Instruct has it for classifications, Wang et al. 2022, section 3.1; here without a
label that a model made up). Whether the message deserves its label is the teacher's affair and is not checked.

An item is `rows_per_request` requests, one row each, that begin alike: seeds of one class, as if the teacher had
written them. A local teacher reads that beginning once. A request shows seeds alone and never what the teacher wrote
before: measured, a 1.5B model that sees its own rows writes them again.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tunesmith.errors import DataError, RecipeError
from tunesmith.generating.asking import Pen
from tunesmith.generating.constraints import message_like, object_of
from tunesmith.generating.examples import ReplyStyle
from tunesmith.generating.gate import Draft, Frame, Piece
from tunesmith.generating.labels import Fields, Labelled, Topics, likeness
from tunesmith.generating.parsing import Broken, Row, parse_objects
from tunesmith.generating.seeds import frame_of, seed_examples
from tunesmith.generating.work import Work, Workshop
from tunesmith.protocols import GenerationContext
from tunesmith.recipe import Generate
from tunesmith.text.rouge import count_words
from tunesmith.types import Message, Task

_MESSAGE = "message"
_MESSAGE_KEYS = ("input", "消息")
_LEAST_ECHO = 0.5  # ROUGE-L F1 of message and answer that is always allowed; more where a seed has more


async def label_first(options: Generate, ctx: GenerationContext, wanted: int) -> Task:
    """Ask until `wanted` rows are accepted or a hard stop is met. Returns the task unchanged.

    Raises RecipeError without a schema that has a field to draw, DataError where no seed's reply has those fields.
    """
    fields = Fields.of(ctx.task.output_schema)
    if not fields.drawn or _MESSAGE in fields.written:
        raise RecipeError(
            "label_first draws the fields of an answer that hold one of few values (enum, const, boolean, number) or "
            "an identifier (pattern), and "
            + (f"the schema's {_MESSAGE!r} would be taken for the user's" if fields.drawn else "there is none"),
            where="recipe.ingest.output_schema",
            hint="give a JSON Schema of the answers with such a field, or use `generate.generator: self_instruct`",
        )
    examples = seed_examples(ctx, "label_first")
    seeds = [seed for example in examples if (seed := fields.take_apart(example)) is not None]
    if not seeds:
        raise DataError(
            f"no example's reply is a JSON object with the fields {', '.join(fields.drawn)}",
            where="recipe.ingest.files",
            hint="label_first copies the form of its answers from examples",
        )
    pen = Pen.of(options, ctx, "label_first")
    shop = Workshop(
        options,
        ctx,
        wanted,
        generator="label_first",
        rows_per_item=options.rows_per_request,
        examples=examples,
        slots=True,
    )
    desk = _Desk(pen, fields, seeds, ReplyStyle(examples))
    await shop.write(desk.sheet)
    return ctx.task


class _Desk:
    """What every chat of one run has in common."""

    def __init__(self, pen: Pen, fields: Fields, seeds: Sequence[Labelled], style: ReplyStyle) -> None:
        self._pen = pen
        self._fields = fields
        self._style = style
        self._classes = _by_class(fields, seeds)
        self._most_alike = max(_LEAST_ECHO, *(likeness(seed.example.input, seed.written) for seed in seeds))
        self._topics = Topics([seed.example.input for seed in seeds])
        message = message_like([seed.example.input for seed in seeds])
        self._schema = object_of(**{_MESSAGE: message, **fields.written})

    async def sheet(self, number: int) -> Work:
        """Item `number`: the classes take turns, and within a class its seeds, so the rows are spread as the seeds are."""
        name = list(self._classes)[number % len(self._classes)]
        seeds = self._classes[name]
        num_rows = self._pen.options.rows_per_request
        first = number // len(self._classes) * num_rows
        models = [self._model(name, first + place) for place in range(num_rows)]
        shown = self._shown(seeds, models, number)
        turns = [Message(role="system", content=self._pen.fill("system", {}))]
        for seed in shown:
            rng = self._pen.rng(f"{number}/{seed.example.conversation.id}", "topic")
            turns += [self._order(seed.drawn, seed, rng), Message(role="assistant", content=_answer_of(seed))]
        pieces: list[Piece] = []
        text = ""
        for place, model in enumerate(models):
            rng = self._pen.rng(f"{number}/{place}", "row")
            drawn = self._fields.draw(model, rng)
            messages = (*turns, self._order(drawn, model, rng))
            request = self._pen.request_of(messages, number, schema=self._schema, rng_seed=rng.getrandbits(31))
            found, completion = await self._pen.ask_form(request, partial(self._read, drawn=drawn, model=model))
            text = completion.text
            pieces += found
        return Work(tuple(pieces), self._frame(shown), text)

    def _model(self, name: str, turn: int) -> Labelled:
        """Every seed of a class once, in drawn order, before any comes again."""
        seeds = self._classes[name]
        lap, place = divmod(turn, len(seeds))
        return self._pen.rng(f"{name}/{lap}", "order").sample(seeds, len(seeds))[place]

    def _shown(self, seeds: Sequence[Labelled], models: Sequence[Labelled], number: int) -> list[Labelled]:
        """Seeds that are no model of this item before those that are, and first one of each kind that it is to write."""
        taken = {id(model) for model in models}
        drawn = sorted(self._pen.rng(number, "seeds").sample(seeds, len(seeds)), key=lambda seed: id(seed) in taken)
        missing = {model.kind for model in models}
        first: list[Labelled] = []
        for seed in drawn:
            if seed.kind in missing:
                missing.remove(seed.kind)
                first.append(seed)
        rest = [seed for seed in drawn if all(seed is not one for one in first)]
        return [*first, *rest][: self._pen.options.num_seeds_shown]

    def _order(self, drawn: Mapping[str, Any], like: Labelled, rng: random.Random) -> Message:
        values = {
            "label": json.dumps(drawn, ensure_ascii=False),
            "num_words": count_words(like.example.input),
            "topic": ", ".join(self._topics.draw(like.example.input, rng)),
            "named": ", ".join(str(drawn[name]) for name in like.named),
            "unnamed": ", ".join(name for name in self._fields.identifiers if drawn[name] is None),
        }
        return Message(role="user", content=self._pen.fill("user", values))

    def _read(self, text: str, *, cut: bool, drawn: dict[str, Any], model: Labelled) -> list[Draft | Broken]:
        keys = {_MESSAGE: _MESSAGE_KEYS, **{name: () for name in self._fields.written}}
        found = parse_objects(text, fields=keys, cut=cut)[0]
        if not isinstance(found, Row):
            return [found]
        message = str(found.input[_MESSAGE]).strip()
        written = {name: found.input[name] for name in self._fields.written}
        full = next((name for name, text in found.input.items() if self._fills(name, text)), None)
        reply = self._style.write({**drawn, **written})
        messages = (Message(role="user", content=message), Message(role="assistant", content=reply))
        fault = self._fields.fault(drawn, model.named, message, written)
        if (alike := likeness(message, written)) > self._most_alike:
            fault = "echo", f"message and answer say the same: ROUGE-L F1 {alike:.2f} > {self._most_alike:.2f}"
        if full is not None:
            fault = "cut_off", f"{full} has all the characters it may have, so it ends where the schema ends it"
        return [Draft(messages, {"like": model.example.conversation.id}, fault)]

    def _fills(self, name: str, text: Any) -> bool:
        limit = self._schema["properties"][name].get("maxLength")
        return isinstance(text, str) and limit is not None and len(text) >= limit

    def _frame(self, shown: Sequence[Labelled]) -> Frame:
        return frame_of([seed.example for seed in shown], self._pen.task)


def _answer_of(seed: Labelled) -> str:
    """A seed as if the teacher had written it."""
    return json.dumps({_MESSAGE: seed.example.input, **seed.written}, ensure_ascii=False)


def _by_class(fields: Fields, seeds: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """Seeds by the first drawn field that is no identifier, in the order in which its values come up."""
    name = next((name for name in fields.drawn if name not in fields.identifiers), None)
    classes: dict[str, list[Labelled]] = defaultdict(list)
    for seed in seeds:
        classes[json.dumps(seed.drawn[name]) if name is not None else ""].append(seed)
    return dict(classes)
