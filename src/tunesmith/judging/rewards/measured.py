"""Rewards that are metrics of evaluation: what is measured afterwards is what was rewarded. The rules are those of
judging/metrics.py; knows no teacher and no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from tunesmith.errors import RecipeError
from tunesmith.judging.fields import Target, find_target
from tunesmith.judging.metrics import MISSING, exact_match, field_accuracy, parse_json, reply_rouge_l, schema_valid
from tunesmith.protocols import Attempt, Reward, RewardContext
from tunesmith.recipe.rewards import ExactOptions, FieldsOptions, JsonSchemaOptions, RougeLOptions
from tunesmith.types import Score


def json_schema(options: JsonSchemaOptions, ctx: RewardContext) -> Reward:
    """1 for one JSON value that obeys the task's schema, else 0. RecipeError where the task has no schema."""
    if ctx.task.output_schema is None:
        raise RecipeError(
            "the reward json_schema needs `ingest.output_schema`, which is missing",
            where=ctx.where,
            hint="name a schema there, or take another reward",
        )
    target = Target(is_json=True, schema=ctx.task.output_schema)
    return _each(lambda attempt: schema_valid(attempt.completion, "", target)["schema_valid"])


def fields(options: FieldsOptions, ctx: RewardContext) -> Reward:
    """Right fields / fields of the reference. An answer that is no JSON object has none right: 0, not unscored.

    One that a stop string ended is read as if the object were closed there; what it has not come to is wrong like any missing
    field, or an answer that leaves out what is hard would earn more.
    """
    target = _target(ctx, exact=options.fields, text=None)
    if not target.exact_fields:
        raise RecipeError(
            "the reward fields finds no field to compare: the schema restricts none",
            where=ctx.where,
            hint="list them: `- fields: [name, ...]`",
        )

    def score(attempt: Attempt) -> Score:
        if attempt.reference is None:
            return _no_reference()
        answer = attempt.completion if attempt.stop_string is None else _closed(attempt.completion)
        scores = field_accuracy(answer, attempt.reference, target)
        total = scores.pop("all_fields")
        known = [each.value for each in scores.values() if each.value is not None]
        if not known:
            return total
        return Score(value=sum(known) / len(known), explanation=total.explanation)

    return _each(score)


def exact(options: ExactOptions, ctx: RewardContext) -> Reward:
    """1 where answer and reference are the same text, white space at the ends aside."""
    target = Target(is_json=False)

    def score(attempt: Attempt) -> Score:
        if attempt.reference is None:
            return _no_reference()
        return exact_match(attempt.completion, attempt.reference, target)["exact_match"]

    return _each(score)


def rouge_l(options: RougeLOptions, ctx: RewardContext) -> Reward:
    """ROUGE-L F1 in [0, 1], of the text field where there is one."""
    target = _target(ctx, exact=(), text=options.field)

    def score(attempt: Attempt) -> Score:
        if attempt.reference is None:
            return _no_reference()
        return reply_rouge_l(attempt.completion, attempt.reference, target)["rouge_l"]

    return _each(score)


def _each(score: Callable[[Attempt], Score]) -> Reward:
    return lambda attempts: [score(attempt) for attempt in attempts]


def _target(
    ctx: RewardContext, *, exact: Sequence[str] | Literal["auto"], text: str | Literal["auto"] | None
) -> Target:
    references = [parse_json(reference) for reference in ctx.references]
    try:
        found = find_target(ctx.task.output_schema, references, exact, "auto" if text is None else text)
    except RecipeError as error:
        raise RecipeError(error.message, where=ctx.where, hint=error.hint) from error
    return found


def _closed(head: str) -> str:
    """The head of a JSON object as a whole one, where it ends between two fields; as it is where it was whole."""
    if parse_json(head) is not MISSING:
        return head
    return head.rstrip().removesuffix(",") + "}"


def _no_reference() -> Score:
    return Score(value=None, explanation="the row has no reference answer")
