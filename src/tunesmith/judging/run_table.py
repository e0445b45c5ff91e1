"""Runs that are compared as plain cells: for a wide place, a narrow one, Markdown and programs.

Owns how a score, a difference, a count and hours are written. Refuses to know terminals and where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.judging.run_comparison import Contestant, TestSet, difference
from tunesmith.judging.scores import is_share, label
from tunesmith.judging.statistics import Comparison

NUM_WORDS = 3
"""Columns before the numbers: run, model, how it was trained."""


def table_rows(test_set: TestSet, metrics: Sequence[str], *, brief: bool = False) -> list[list[str]]:
    """Headings, then a line for each contestant. A difference is to the first line, paired by row.

    brief: units stand in the headings, and the share of weights that is trained is left out.
    """
    heads = ["run", "model", "trained", *(_heading(label(metric), metric, "%", brief) for metric in metrics)]
    rows = [[*heads, _heading("difference", metrics[0], "pts", brief), "trainable", "h / epoch"]]
    for each in test_set.contestants:
        found = difference(each, test_set.contestants[0], metrics[0])
        rows.append(
            [
                each.run,
                each.model,
                each.method,
                *(_score(metric, each.scores.get(metric), brief) for metric in metrics),
                _difference(metrics[0], found, brief),
                _parameters(each, brief),
                _hours(each.hours_per_epoch),
            ]
        )
    return rows


def without_repeats(rows: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """(the table without the columns of words that say the same on every line and without empty columns, what the former
    said as (heading, text))."""
    columns = list(zip(*rows, strict=True))
    said = [column[:2] for column in columns[:NUM_WORDS] if len(set(column[1:])) == 1]
    kept = [
        column
        for place, column in enumerate(columns)
        if any(column[1:]) and (place >= NUM_WORDS or len(set(column[1:])) > 1)
    ]
    return [list(row) for row in zip(*kept, strict=True)], [(heading, text) for heading, text in said]


def as_json(test_sets: Sequence[TestSet], metrics: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """For programs: every metric of every contestant. metrics: by digest, those of the table."""
    return [
        {
            "test_set": {"digest": test_set.digest, "rows": test_set.num_rows},
            "metrics": list(metrics[test_set.digest]),
            "models": [
                {
                    "run": each.run,
                    "model": each.model,
                    "method": each.method,
                    "scores": dict(each.scores),
                    "difference_to_first": found.as_json() if found else None,
                    "trainable_parameters": each.trainable_parameters,
                    "total_parameters": each.total_parameters,
                    "hours_per_epoch": each.hours_per_epoch,
                }
                for each in test_set.contestants
                for found in [difference(each, test_set.contestants[0], metrics[test_set.digest][0])]
            ],
        }
        for test_set in test_sets
    ]


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the columns of words are set left, the numbers right."""
    rule = _line(["---" if place < NUM_WORDS else "---:" for place in range(len(rows[0]))])
    return "\n".join([_line(rows[0]), rule, *map(_line, rows[1:])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _heading(name: str, metric: str, unit: str, brief: bool) -> str:
    return f"{name}, {unit}" if brief and is_share(metric) else name


def _score(metric: str, summary: Mapping[str, Any] | None, brief: bool) -> str:
    if summary is None or summary["mean"] is None:
        return "-"
    factor, digits, unit = (100, 1, "" if brief else " %") if is_share(metric) else (1, 3, "")
    error = "" if summary["stderr"] is None else f" ± {factor * summary['stderr']:.{digits}f}"
    unscored = f" ({summary['n_unscored']} unscored)" if summary.get("n_unscored") else ""
    return f"{factor * summary['mean']:.{digits}f}{error}{unit}{unscored}"


def _difference(metric: str, found: Comparison | None, brief: bool) -> str:
    if found is None or found.difference is None:
        return ""
    factor, digits, unit = (100, 1, "" if brief else " pts") if is_share(metric) else (1, 3, "")
    error = "" if found.stderr is None else f" ± {factor * found.stderr:.{digits}f}"
    return f"{factor * found.difference:+.{digits}f}{error}{unit}"


def _parameters(each: Contestant, brief: bool) -> str:
    if each.trainable_parameters is None:
        return "?"
    if not each.trainable_parameters:
        return "-"
    share = f" ({each.trainable_parameters / each.total_parameters:.2%})" if each.total_parameters else ""
    return f"{_count(each.trainable_parameters)}{'' if brief else share}"


def _count(number: int) -> str:
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if number >= 0.9995 * limit:  # three digits of less than that round to less
            return f"{number / limit:.3g}{unit}"
    return str(number)


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"
