"""The report of an evaluation: one HTML file that needs nothing else, and the score table as plain cells.

Owns how results are shown. Everything in it (prompts, answers, names) is untrusted: text written into the HTML is
escaped, the data block cannot end its element, and the content policy allows exactly the two inline blocks of this file,
by their digests. Computes no score.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from tunesmith.judging.fields import Target
from tunesmith.judging.scores import (
    COMPARISONS,
    confusion,
    contestants_of,
    is_share,
    label,
    metrics_of,
    regressions,
    verdict,
)
from tunesmith.text.page_head import content_policy, page_head
from tunesmith.types import Sample

_UNSAFE_IN_SCRIPT = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def score_table_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """scores.json as a table: the headings, then one row per metric that was measured.

    Columns: metric, one per contestant, and "tuned - base" where both were scored.
    """
    names = contestants_of(scores)
    compared = scores.get(COMPARISONS, {}).get("tuned_vs_base", {})
    rows = [["", *names, *(["tuned - base"] if compared else [])]]
    for metric in metrics_of(scores):
        cells = [_cell(metric, scores[name].get(metric)) for name in names]
        if not any(cells):
            continue
        difference = [_difference(metric, compared.get(metric))] if compared else []
        rows.append([label(metric), *cells, *difference])
    return rows


def render_report(
    samples: Sequence[Sample], scores: Mapping[str, Any], target: Target, *, title: str, about: str
) -> str:
    """The whole HTML file. title: what was evaluated; about: one sentence on how. Both are plain text."""
    page = files("tunesmith.judging") / "page"
    style = (page / "report.css").read_text(encoding="utf-8")
    script = (page / "report.js").read_text(encoding="utf-8")
    return Template((page / "report.html").read_text(encoding="utf-8")).substitute(
        head=page_head(title, style, policy=content_policy(style, script)),
        title=html.escape(title),
        about=html.escape(about),
        verdict=_verdict(scores),
        table=_table(scores),
        data=embed_json(_data(samples, scores, target)),
        script=script,
    )


def embed_json(value: Any) -> str:
    """JSON that may stand inside a script element: no character of it can end the element or a line of script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_UNSAFE_IN_SCRIPT).encode("utf-8", "replace").decode()


def _data(samples: Sequence[Sample], scores: Mapping[str, Any], target: Target) -> dict[str, Any]:
    names = contestants_of(scores)
    metrics = [
        {
            "name": metric,
            "label": label(metric),
            "share": is_share(metric),
            "unit_interval": is_share(metric) or metric == "rouge_l",
            "field": metric.startswith("field."),
        }
        for metric in metrics_of(scores)
    ]
    confusions = [
        {"field": field, "contestant": name, **table}
        for field in target.exact_fields
        for name in sorted(names, key=("tuned", "base", "teacher").index)
        if (table := confusion(samples, name, field, target)) is not None
    ]
    return {
        "contestants": names,
        "metrics": metrics,
        "scores": {name: scores[name] for name in names},
        "confusions": confusions,
        "samples": [_sample(number, sample) for number, sample in enumerate(samples, start=1)],
    }


def _sample(number: int, sample: Sample) -> dict[str, Any]:
    return {
        "number": number,
        "id": sample.id,
        "prompt": [{"role": message.role, "content": message.content} for message in sample.messages],
        "reference": sample.reference,
        "answers": {
            name: {
                "text": answer.text,
                "cut": answer.finish_reason == "length",
                "error": answer.error,
                "tokens": answer.usage.completion_tokens,
            }
            for name, answer in sample.completions.items()
        },
        "scores": {
            name: {metric: [score.value, score.explanation] for metric, score in each.items()}
            for name, each in sample.scores.items()
        },
    }


def _verdict(scores: Mapping[str, Any]) -> str:
    sentences = verdict(scores) or ["Nothing was evaluated: there are no test rows."]
    parts = [
        f'<p class="verdict{"" if index == 0 else " more"}">{html.escape(sentence[:1].upper() + sentence[1:])}</p>'
        for index, sentence in enumerate(sentences)
    ]
    worse = regressions(scores)
    if worse:
        parts.append(f'<p class="warning">Worse than the base model: {html.escape("; ".join(worse))}.</p>')
    return "\n".join(parts)


def _table(scores: Mapping[str, Any]) -> str:
    heading, *rows = score_table_rows(scores)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>' + "".join(f"<td>{_dimmed(cell)}</td>" for cell in row[1:])
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _dimmed(cell: str) -> str:
    """The number as it is, what follows it (error, interval, n) in a softer tone."""
    number, space, rest = cell.partition("  ")
    return html.escape(number) + (f' <span class="error">{html.escape(rest)}</span>' if space else "")


def _cell(metric: str, summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    unscored = f"({summary['n_unscored']} unscored)" if summary["n_unscored"] else ""
    if summary["mean"] is None:
        return f"-  {unscored}".rstrip()
    share = is_share(metric)
    factor, digits = (100, 1) if share else (1, 3)
    details = [
        "" if summary["stderr"] is None else f"± {factor * summary['stderr']:.{digits}f}",
        f"({round(summary['mean'] * summary['n'])}/{summary['n']})" if share else "",
        unscored,
    ]
    number = f"{factor * summary['mean']:.{digits}f}" + (" %" if share else "")
    return "  ".join([number, " ".join(filter(None, details))]).rstrip()


def _difference(metric: str, compared: Mapping[str, Any] | None) -> str:
    if compared is None or compared["difference"] is None:
        return ""
    factor, unit, digits = (100, " pts", 1) if is_share(metric) else (1, "", 3)
    text = f"{factor * compared['difference']:+.{digits}f}{unit}"
    details: list[str] = []
    if compared["interval"] is not None:
        low, high = (factor * bound for bound in compared["interval"])
        details.append(f"[{low:+.{digits}f}, {high:+.{digits}f}]")
    details.append(f"{compared['wins']}/{compared['ties']}/{compared['losses']}")
    return f"{text}  {' '.join(details)}"
