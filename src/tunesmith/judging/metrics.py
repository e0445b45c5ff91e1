"""What one answer is worth beside its reference. Knows no model and no statistics.

The rules, in words:
- json_valid: the whole answer is one JSON value. Prose around it, NaN, or a second value make it invalid.
- schema_valid: and that value obeys the task's schema.
- field.NAME: the answer's field equals the reference's. An answer that is no JSON object, or lacks the field, is wrong
  (0, not unscored): the model was asked for it and did not deliver. all_fields: every one of them is right.
- rouge_l: of the text field. Where the answer has no such field, its whole text is compared with the reference's
  field, so a model that answers in prose is judged by what it said. Without a schema: whole answer, whole reference.
- None (unscored) is only what could not be measured: the answer never came, or the reference lacks the field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from tunesmith.hashing import canonical_json
from tunesmith.judging import METRICS
from tunesmith.judging.fields import Target
from tunesmith.text.rouge import rouge_l
from tunesmith.types import Completion, Score

Metric = Callable[[str, str, Target], Mapping[str, Score]]

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
_MAX_DEPTH = 64  # levels of JSON nesting; what is deeper could exhaust the stack of a validator
_MAX_SHOWN = 80  # characters of a value in an explanation


class _Missing:
    """Stands for a value that is not there, which None (JSON's null) cannot."""


MISSING = _Missing()


def score_answer(completion: Completion, reference: str, target: Target) -> dict[str, Score]:
    """Every metric that fits the target. An answer that never came is unscored in all of them, with the reason."""
    scores: dict[str, Score] = {}
    for name in metric_names(target):
        metric: Metric = METRICS.load(name)
        scores |= metric(completion.text, reference, target)
    if completion.finish_reason == "error":
        reason = f"no answer: {completion.error or 'unknown'}"
        return {name: Score(value=None, explanation=reason) for name in scores}
    return scores


def metric_names(target: Target) -> list[str]:
    """Which metrics of the registry fit."""
    if not target.is_json:
        return ["exact_match", "rouge_l"]
    names = ["json_valid"]
    if target.schema is not None:
        names.append("schema_valid")
    if target.exact_fields:
        names.append("fields")
    return [*names, "rouge_l"]


def parse_json(text: str) -> Any:
    """The one JSON value a text consists of, MISSING where it does not (or nests deeper than anybody means)."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return MISSING
    return value if _depth_within(value, _MAX_DEPTH) else MISSING


def json_valid(answer: str, reference: str, target: Target) -> dict[str, Score]:
    """1 where the whole answer is one JSON value."""
    return {"json_valid": _verdict(parse_json(answer) is not MISSING, "not JSON")}


def schema_valid(answer: str, reference: str, target: Target) -> dict[str, Score]:
    """1 where the answer is JSON and obeys the schema."""
    value = parse_json(answer)
    if value is MISSING or target.schema is None:
        return {"schema_valid": _verdict(False, "not JSON")}
    error = best_match(_validator(canonical_json(target.schema)).iter_errors(value))
    return {"schema_valid": _verdict(error is None, _describe(error) if error else "")}


def field_accuracy(answer: str, reference: str, target: Target) -> dict[str, Score]:
    """field.NAME of every exact field, and all_fields."""
    found, expected = parse_json(answer), parse_json(reference)
    scores: dict[str, Score] = {}
    for name in target.exact_fields:
        wanted, given = _field(expected, name), _field(found, name)
        if wanted is MISSING:
            scores[f"field.{name}"] = Score(value=None, explanation="the reference has no such field")
        elif given is MISSING:
            scores[f"field.{name}"] = _verdict(False, "not JSON" if found is MISSING else "the field is missing")
        else:
            scores[f"field.{name}"] = _verdict(same(given, wanted), f"{show(given)}, expected {show(wanted)}")
    values = [score.value for score in scores.values() if score.value is not None]
    if not values:
        return {**scores, "all_fields": Score(value=None, explanation="the reference has none of the fields")}
    wrong = ", ".join(name.removeprefix("field.") for name, score in scores.items() if score.value == 0)
    return {**scores, "all_fields": _verdict(not wrong, f"wrong: {wrong}")}


def exact_match(answer: str, reference: str, target: Target) -> dict[str, Score]:
    """1 where answer and reference are the same text, white space at the ends aside."""
    return {"exact_match": _verdict(answer.strip() == reference.strip(), "")}


def reply_rouge_l(answer: str, reference: str, target: Target) -> dict[str, Score]:
    """ROUGE-L F1 (Lin 2004) in [0, 1]; see the module's rules for what is compared."""
    wanted, given, explanation = reference, answer, ""
    if target.text_field is not None:
        value = _field(parse_json(reference), target.text_field)
        if not isinstance(value, str):
            return {"rouge_l": Score(value=None, explanation=f"the reference has no text in {target.text_field!r}")}
        wanted = value
        field = _field(parse_json(answer), target.text_field)
        if isinstance(field, str):
            given = field
        else:
            explanation = f"no text in {target.text_field!r}: the whole answer is compared"
    return {"rouge_l": Score(value=round(rouge_l(given, wanted), 6), explanation=explanation)}


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, true does not equal 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b if isinstance(a, str) or isinstance(b, str) else a == b


def show(value: Any) -> str:
    """A JSON value for people: short, and always writable."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _depth_within(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_depth_within(each, depth - 1) for each in inner)


def _field(value: Any, name: str) -> Any:
    return value.get(name, MISSING) if isinstance(value, dict) else MISSING


def _verdict(right: bool, otherwise: str) -> Score:
    return Score(value=1.0 if right else 0.0, explanation="" if right else otherwise)


def _describe(error: ValidationError) -> str:
    place = ".".join(map(str, error.absolute_path))
    rule = show(error.validator_value)
    return f"{place or 'the answer'}: {show(error.instance)} breaks {error.validator} {rule}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


@cache
def _validator(schema: bytes) -> Validator:
    value = json.loads(schema)
    return validator_for(value)(value)
