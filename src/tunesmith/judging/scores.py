"""From scored samples to scores.json: every metric of every contestant, comparisons, confusion tables, and what they say
in words. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.judging.fields import Target, choices
from tunesmith.judging.metrics import LOWER_IS_BETTER, MISSING, parse_json, same, show
from tunesmith.judging.statistics import Comparison, Summary, compare, perplexity, summarize
from tunesmith.types import Sample

LOSS = "loss"
COMPARISONS = "comparisons"
_NOT_JSON, _OTHER = "not JSON", "other"
_WHO = {"tuned": "the tuned model", "base": "the base model", "teacher": "the teacher"}


def compute_scores(
    samples: Sequence[Sample], contestants: Sequence[str], num_tokens: Mapping[str, int], *, rng_seed: int
) -> dict[str, Any]:
    """The content of scores.json: {contestant: {metric: summary}, "comparisons": {"tuned_vs_base": {metric: ...}}}.

    num_tokens: supervised tokens of each sample, the weights of `loss`. rng_seed: of the bootstrap.
    """
    scores: dict[str, Any] = {}
    for name in contestants:
        summaries = _summaries(samples, name, num_tokens)
        scores[name] = {metric: summary.as_json() for metric, summary in summaries.items()}
    comparisons: dict[str, Any] = {}
    if "tuned" in contestants:
        for other in contestants:
            if other != "tuned":
                compared = _compared(samples, "tuned", other, num_tokens, rng_seed)
                comparisons[f"tuned_vs_{other}"] = {name: each.as_json() for name, each in compared.items()}
    return {**scores, COMPARISONS: comparisons}


def contestants_of(scores: Mapping[str, Any]) -> list[str]:
    """Names in the order they were scored."""
    return [name for name in scores if name != COMPARISONS]


def metrics_of(scores: Mapping[str, Any]) -> list[str]:
    """Every metric any contestant has, in order."""
    return list(dict.fromkeys(metric for name in contestants_of(scores) for metric in scores[name]))


def headline(scores: Mapping[str, Any]) -> dict[str, float]:
    """{"tuned.json_valid": 0.98, ...}: the means that could be measured."""
    return {
        f"{name}.{metric}": summary["mean"]
        for name in contestants_of(scores)
        for metric, summary in scores[name].items()
        if summary["mean"] is not None
    }


def confusion(samples: Sequence[Sample], contestant: str, field: str, target: Target) -> dict[str, Any] | None:
    """Expected (rows) against found (columns) for an enum field; None for other fields.

    {"labels": [...], "columns": [...], "counts": [[int]]}; the last columns are any other value, and answers that are
    no JSON object with that field. Answers that never came are left out.
    """
    values = choices(field, target.schema)
    if not values:
        return None
    labels = [value if isinstance(value, str) else show(value) for value in values]
    counts = [[0] * (len(values) + 2) for _ in values]
    for sample in samples:
        completion = sample.completions.get(contestant)
        row = _place(values, _value(sample.reference, field))
        if completion is None or completion.finish_reason == "error" or row is None:
            continue
        found = _value(completion.text, field)
        column = len(values) + 1 if found is MISSING else _place(values, found)
        counts[row][len(values) if column is None else column] += 1
    return {"labels": labels, "columns": [*labels, _OTHER, _NOT_JSON], "counts": counts}


def verdict(scores: Mapping[str, Any]) -> list[str]:
    """What the scores say, in sentences, the most telling first. [] where nothing was measured."""
    names = [name for name in ("tuned", "base", "teacher") if name in scores]
    sentences: list[str] = []
    for metric, wording in (
        ("schema_valid", "answers with JSON that obeys the schema"),
        ("json_valid", "answers with valid JSON"),
        ("all_fields", "gets every exact field right"),
        ("exact_match", "gives the reference answer word for word"),
    ):
        if metric == "json_valid" and sentences:
            continue  # the schema says it already
        parts = [f"{_WHO[name]} on {_of(scores[name][metric])}" for name in names if _measured(scores, name, metric)]
        if parts:
            subject, _, count = parts[0].partition(" on ")
            sentences.append("; ".join([f"{subject} {wording} on {count} test rows", *parts[1:]]) + ".")
    parts = [f"{name} {scores[name][LOSS]['mean']:.2f}" for name in names if _measured(scores, name, LOSS)]
    if parts:
        sentences.append(f"loss per token of the reference answers: {', '.join(parts)} (lower is better).")
    return sentences


def regressions(scores: Mapping[str, Any]) -> list[str]:
    """Where the tuned model is worse than its base beyond what chance explains (95 % interval without zero)."""
    found: list[str] = []
    for metric, compared in scores[COMPARISONS].get("tuned_vs_base", {}).items():
        interval = compared["interval"]
        if interval is None:
            continue
        worse = interval[0] > 0 if metric in LOWER_IS_BETTER else interval[1] < 0
        if worse:
            tuned, base = scores["tuned"][metric]["mean"], scores["base"][metric]["mean"]
            found.append(f"{label(metric)}: {tuned:.3g} against {base:.3g}")
    return found


def label(metric: str) -> str:
    """A metric's name for people."""
    if metric.startswith("field."):
        return metric.removeprefix("field.")
    return {
        "json_valid": "valid JSON",
        "schema_valid": "obeys the schema",
        "all_fields": "all exact fields",
        "exact_match": "exact match",
        "rouge_l": "ROUGE-L",
        LOSS: "loss per token",
    }.get(metric, metric)


def is_share(metric: str) -> bool:
    """Whether every sample is right or wrong, so that the mean is a share of samples."""
    return metric in ("json_valid", "schema_valid", "all_fields", "exact_match") or metric.startswith("field.")


def _summaries(samples: Sequence[Sample], contestant: str, num_tokens: Mapping[str, int]) -> dict[str, Summary]:
    summaries: dict[str, Summary] = {}
    for metric in _metrics(samples, contestant):
        summaries[metric] = summarize(_values(samples, contestant, metric), _weights(samples, metric, num_tokens))
        if metric == LOSS:
            summaries["perplexity"] = perplexity(summaries[LOSS])
    return summaries


def _compared(
    samples: Sequence[Sample], name: str, other: str, num_tokens: Mapping[str, int], rng_seed: int
) -> dict[str, Comparison]:
    return {
        metric: compare(
            _values(samples, name, metric),
            _values(samples, other, metric),
            _weights(samples, metric, num_tokens),
            lower_is_better=metric in LOWER_IS_BETTER,
            rng_seed=rng_seed,
        )
        for metric in _metrics(samples, name)
        if metric in _metrics(samples, other)
    }


def _metrics(samples: Sequence[Sample], contestant: str) -> list[str]:
    return list(dict.fromkeys(metric for sample in samples for metric in sample.scores.get(contestant, {})))


def _values(samples: Sequence[Sample], contestant: str, metric: str) -> list[float | None]:
    scores = [sample.scores.get(contestant, {}).get(metric) for sample in samples]
    return [None if score is None else score.value for score in scores]


def _weights(samples: Sequence[Sample], metric: str, num_tokens: Mapping[str, int]) -> list[float] | None:
    return [float(num_tokens.get(sample.id, 0)) for sample in samples] if metric == LOSS else None


def _value(text: str, field: str) -> Any:
    value = parse_json(text)
    return value.get(field, MISSING) if isinstance(value, dict) else MISSING


def _place(values: Sequence[Any], value: Any) -> int | None:
    return next((place for place, known in enumerate(values) if same(known, value)), None)


def _measured(scores: Mapping[str, Any], contestant: str, metric: str) -> bool:
    summary = scores[contestant].get(metric)
    return summary is not None and summary["mean"] is not None


def _of(summary: Mapping[str, Any]) -> str:
    return f"{round(summary['mean'] * summary['n'])} of {summary['n']}"
