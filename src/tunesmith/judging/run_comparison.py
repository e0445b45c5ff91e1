"""What is compared of runs: model, scores with their errors, trainable parameters, hours per epoch (the columns of BELLE,
arXiv 2304.08109, table 2). Scores of different test rows never stand together.

Owns what is read of a finished run, and which of them were measured on the same rows. Refuses to know tables (run_table.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tunesmith.errors import RecipeError, StoreError, nearest
from tunesmith.hashing import digest_json
from tunesmith.judging.metrics import LOWER_IS_BETTER
from tunesmith.judging.statistics import Comparison, compare
from tunesmith.store import Run
from tunesmith.text.jsonl import read_records
from tunesmith.types import Artifact, Sample

_SAMPLES, _SCORES, _METRICS = "samples.jsonl", "scores.json", "logs/metrics.jsonl"
_BOOTSTRAP_SEED = 17
_PREFERRED = ("all_fields", "exact_match", "schema_valid", "json_valid", "rouge_l", "loss")
"""Which metric is "the score" where none is named: the first of these that every run has."""


@dataclass(frozen=True)
class Contestant:
    """One line of the table: a tuned model, or the base model it was made of."""

    run: str
    model: str  # "smollm2-135m"
    method: str  # "lora", "full, then dpo", "base"
    scores: Mapping[str, Mapping[str, Any]]  # metric -> {"mean", "stderr", "n", "n_unscored"}
    values: Mapping[str, tuple[float | None, ...]]  # metric -> value of each test row, in the order of their digests
    test_digest: str  # of the test rows: prompts and references
    num_test_rows: int
    trainable_parameters: int | None
    total_parameters: int | None
    hours_per_epoch: float | None


@dataclass(frozen=True)
class TestSet:
    """Contestants that answered the same rows."""

    digest: str
    num_rows: int
    contestants: tuple[Contestant, ...]

    def metric(self, wanted: str | None) -> str:
        """The metric of the score column. RecipeError where no contestant of this set has the one that was asked for."""
        known = list(dict.fromkeys(name for each in self.contestants for name in each.scores))
        if wanted is not None and wanted not in known:
            close = nearest(wanted, known)
            raise RecipeError(
                f"no run that was evaluated on the {self.num_rows:,} test rows {self.digest} has the metric {wanted!r}",
                where="--metric",
                hint=f"did you mean {close!r}?" if close else f"there are: {', '.join(known)}",
            )
        if wanted is not None:
            return wanted
        shared = [name for name in known if all(name in each.scores for each in self.contestants)]
        return next((name for name in (*_PREFERRED, *shared) if name in shared), known[0] if known else "loss")


def read_contestants(run: Run) -> list[Contestant]:
    """The base and the tuned model of a run. StoreError where it has not been evaluated."""
    evaluation, trained = run.artifact("evaluate"), run.artifact("train")
    if evaluation is None or trained is None:
        missing = "evaluate" if trained is not None else "train"
        raise StoreError(
            f"the run has not finished its stage {missing}, so there is nothing to compare",
            where=run.name,
            hint="let `tunesmith run` finish first, or leave the run out",
        )
    scores = _read_scores(evaluation.file(_SCORES))
    rows = {_row_digest(sample): sample for sample in read_records(evaluation.file(_SAMPLES), Sample)}
    samples = [rows[key] for key in sorted(rows)]
    base = run.artifact("base_model")
    total = base.facts.get("num_parameters") if base else None
    model = str(base.facts["name"]) if base else "?"
    about = {
        "run": run.name,
        "model": model,
        "num_test_rows": len(samples),
        "test_digest": digest_json(sorted(rows))[:16],
    }
    made = [
        Contestant(
            **about,
            method=_method(trained, run.artifact("align")) if name == "tuned" else "base",
            scores=scores[name],
            values=_values(samples, name),
            trainable_parameters=trained.facts.get("num_trainable") if name == "tuned" else 0,
            total_parameters=total,
            hours_per_epoch=hours_per_epoch(trained, run.artifact("tokenize")) if name == "tuned" else None,
        )
        for name in ("base", "tuned")
        if name in scores
    ]
    if not made:
        raise StoreError("the evaluation scored no row", where=run.name, hint="name ingest.test_files and run it again")
    return made


def group_by_test_set(contestants: Iterable[Contestant]) -> list[TestSet]:
    """One group per set of test rows, in order of appearance. A base model that several runs share stands once."""
    groups: dict[str, list[Contestant]] = {}
    for each in contestants:
        group = groups.setdefault(each.test_digest, [])
        known = any(other.method == "base" == each.method and _same(other, each) for other in group)
        if not known:
            group.append(each)
    return [TestSet(digest, group[0].num_test_rows, tuple(_bases_first(group))) for digest, group in groups.items()]


def hours_per_epoch(trained: Artifact, tokenized: Artifact | None) -> float | None:
    """Hours of training steps for one pass over the data; None where the run did not log its speed.

    Tokens of an epoch times the seconds that the steps took for each of theirs, loading, saving and interruptions left
    out. A step that was repeated counts as it was last done. Lines without `seconds` (of a run before 2026-11-22) count
    as one token each, so that theirs is the mean over steps.
    """
    path = trained.file(_METRICS)
    tokens = tokenized.facts.get("num_tokens") if tokenized else None
    if not tokens or not path.is_file():
        return None
    steps: dict[int, tuple[float, float]] = {}  # seconds, tokens
    for line in path.read_bytes().splitlines():
        try:
            row = orjson.loads(line)
            speed = float(row["tokens_per_second"])
            seconds = float(row.get("seconds", 1 / speed))
            steps[int(row["step"])] = seconds, seconds * speed
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # half a line of a killed run, or a step without tokens
    trained_on = sum(number for _, number in steps.values())
    if not trained_on:
        return None
    return tokens * sum(seconds for seconds, _ in steps.values()) / trained_on / 3600


def difference(tuned: Contestant, other: Contestant, metric: str) -> Comparison | None:
    """tuned minus other, row by row; None where the metric is a ratio of sums or one of them lacks it."""
    ours, theirs = tuned.values.get(metric), other.values.get(metric)
    if tuned is other or ours is None or theirs is None or tuned.test_digest != other.test_digest:
        return None
    return compare(ours, theirs, lower_is_better=metric in LOWER_IS_BETTER, rng_seed=_BOOTSTRAP_SEED)


def _read_scores(path: Path) -> dict[str, Any]:
    """scores.json of an evaluation. StoreError where it is not what was written."""
    try:
        scores = orjson.loads(path.read_bytes())
        summaries = [summary for name in ("base", "tuned") for summary in scores.get(name, {}).values()]
        whole = all({"mean", "stderr"} <= summary.keys() for summary in summaries)
    except (OSError, orjson.JSONDecodeError, AttributeError):
        whole = False
    if not whole:
        raise StoreError(
            "the scores of this evaluation cannot be read",
            where=str(path),
            hint="the file was changed by hand or damaged; delete its folder, and `tunesmith run` makes it again",
        )
    return scores


def _row_digest(sample: Sample) -> str:
    """Equal exactly where prompt and reference are."""
    return digest_json([[message.model_dump(exclude_none=True) for message in sample.messages], sample.reference])


def _values(samples: Sequence[Sample], name: str) -> dict[str, tuple[float | None, ...]]:
    """By metric, of those whose mean counts every row alike (a loss per token weighs rows by their tokens)."""
    found = dict.fromkeys(metric for sample in samples for metric in sample.scores.get(name, {}))
    values: dict[str, tuple[float | None, ...]] = {}
    for metric in found:
        if metric not in LOWER_IS_BETTER:
            scores = [sample.scores.get(name, {}).get(metric) for sample in samples]
            values[metric] = tuple(None if score is None else score.value for score in scores)
    return values


def _method(trained: Artifact, aligned: Artifact | None) -> str:
    section = trained.manifest.section
    method = str(trained.facts.get("method") or section.get("method", "?"))
    if method != "full" and section.get("lora_rank"):
        method += f" r={section['lora_rank']}"
    if aligned is None:
        return method
    return f"{method}, then {aligned.facts['loss']}"


def _same(one: Contestant, other: Contestant) -> bool:
    return one.model == other.model and one.values == other.values and one.scores == other.scores


def _bases_first(group: Sequence[Contestant]) -> list[Contestant]:
    return sorted(group, key=lambda each: each.method != "base")
