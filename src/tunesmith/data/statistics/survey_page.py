"""A survey as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.data.statistics.clusters import Cluster
from tunesmith.data.statistics.page import (
    bars,
    cards,
    document,
    escape,
    figures,
    histogram,
    number,
    quoted,
    section,
    table,
    track,
)
from tunesmith.data.statistics.survey import Missing, Survey
from tunesmith.data.statistics.verbs import QUESTION
from tunesmith.data.statistics.wheel import wheel


def survey_page(survey: Survey, counts: Mapping[str, int]) -> str:
    """One HTML file. counts: those of the stage that made the rows."""
    kinds = ", ".join(f"{count.num:,} × {count.name}" for count in survey.kinds) or "no row"
    about = kinds + "".join(f" · {name.replace('_', ' ')} {num:,}" for name, num in counts.items())
    return document(
        kind="data set",
        name=survey.name,
        heading=quoted(survey.name, 300),
        about=escape(about),
        figures=figures(_figures(survey)),
        sections=_sections(survey),
    )


def _figures(survey: Survey) -> Iterator[tuple[str, str]]:
    yield f"{survey.num_rows:,}", "rows"
    if survey.num_excluded:
        yield f"{survey.num_excluded:,}", "left out"
    for part in ("prompt", "reply"):
        if part in survey.lengths:
            yield f"{survey.lengths[part]['words'].median:,}", f"words of a {part}, median"
    if survey.turns is not None:
        yield f"{survey.turns.median:,}", "messages of a row, median"
    yield f"{survey.equal_rows.num_repeats:,}", "rows repeat an earlier one"
    for what, num in (("without a reply", survey.num_without_reply), ("with a system message", survey.num_with_system)):
        if num:
            yield f"{num:,}", what


def _sections(survey: Survey) -> Iterator[str]:
    for missing in survey.missing:
        yield _missing(missing)
    yield section("Lengths", cards(_lengths(survey)), "Dashed: the median. The last bar holds all that is longer too.")
    yield section("Where the rows come from", cards(_tables(survey)), _language_note(survey))
    if survey.verbs:
        yield section("Verbs and their nouns", _verbs(survey), _verb_note(survey))
    if survey.clusters:
        looked_at = (
            "All rows" if survey.num_sampled == survey.num_rows else f"{survey.num_sampled:,} rows drawn at random"
        )
        note = (
            f"{looked_at}: k-means over static embeddings of the prompts. "
            "Words that tell a cluster apart, and the row nearest to its centre."
        )
        yield section("Clusters", "".join(_clusters(survey)), note)
    yield section("Duplicates", _duplicates(survey))
    if survey.taken:
        yield section(
            "Left out",
            _taken(survey),
            "Shares are of all rows, kept and left out. The example is the first of its reason.",
        )


def _missing(missing: Missing) -> str:
    return f'<p class="missing">No {escape(missing.part)}: {escape(missing.why)}. <code>{escape(missing.what_to_do)}</code></p>'


def _lengths(survey: Survey) -> Iterator[str]:
    for part, units in survey.lengths.items():
        for unit, found in units.items():
            unit_name = {"chars": "characters"}.get(unit, unit)
            yield f"<h3>{escape(part)}, {unit_name}</h3>{histogram(found)}"
    if survey.turns is not None:
        yield f"<h3>messages of a row</h3>{histogram(survey.turns)}"


def _tables(survey: Survey) -> Iterator[str]:
    """A card for each table, and one for all that have a single name."""
    single = {title: counts[0].name for title, counts in survey.tables.items() if len(counts) == 1}
    for title, counts in survey.tables.items():
        if len(counts) > 1:
            yield bars(title, counts)
    if single:
        facts = "".join(
            f"<div><dt>{escape(title)}</dt><dd>{quoted(name, 120)}</dd></div>" for title, name in single.items()
        )
        yield f'<h3>the same for all rows</h3><dl class="facts">{facts}</dl>'


def _language_note(survey: Survey) -> str:
    changes = survey.num_language_changes
    return f"{changes:,} replies are in another language than their prompt." if changes else ""


def _verbs(survey: Survey) -> str:
    rows = []
    for verb in survey.verbs:
        name = "(questions)" if verb.verb == QUESTION else verb.verb
        nouns = ", ".join(f"{noun.name} {noun.num:,}" for noun in verb.nouns)
        rows.append(
            [
                (f'<span class="word">{quoted(name)}</span>', name),
                number(verb.num),
                (f'<span class="quiet">{quoted(nouns)}</span>', nouns),
            ]
        )
    listed = table(("verb", "rows", "nouns"), rows)
    return f'<div class="card verbs">{wheel(survey.verbs)}<div>{listed}</div></div>'


def _verb_note(survey: Survey) -> str:
    return (
        f"{survey.num_verbs:,} {'verb' if survey.num_verbs == 1 else 'verbs'} in {survey.num_instructions:,} instructions; the most frequent are shown, each with its most "
        "frequent objects, questions with their question words. Found by rules for English and Chinese, not by a parser; in "
        f"{survey.num_rootless:,} instructions nothing was found."
    )


def _clusters(survey: Survey) -> Iterator[str]:
    most = max(cluster.share for cluster in survey.clusters)
    yield cards(_cluster(cluster, most) for cluster in survey.clusters)


def _cluster(cluster: Cluster, most: float) -> str:
    words = "".join(f"<li>{quoted(word, 40)}</li>" for word in cluster.words) or "<li>(no word of its own)</li>"
    return (
        f'<div class="cluster"><p class="top"><b>{cluster.num:,} rows</b><span>{100 * cluster.share:.1f} %</span></p>'
        f'{track(cluster.share / most)}<ul class="words">{words}</ul><p class="quote">{quoted(cluster.example, 400)}</p></div>'
    )


def _duplicates(survey: Survey) -> str:
    equal, prompts, near = survey.equal_rows, survey.equal_prompts, survey.near
    rows = [
        [("equal rows", None), number(equal.num_repeats), number(equal.num_rows), ("but for case, width and spacing", None)],
        [("equal prompts", None), number(prompts.num_repeats), number(prompts.num_rows), ("their replies may differ", None)],
        [
            ("near copies", None),
            number(near.num_near),
            number(near.num_rows),
            (f"MinHash, Jaccard from {near.min_jaccard:g} on, equal rows aside", None),
        ],
    ]  # fmt: skip
    content = table(("", "repeat an earlier one", "of rows looked at", ""), rows, sortable=False)
    boxes = []
    if prompts.most:
        listed = "".join(
            f'<tr><td class="num">{each.num:,} ×</td><td class="name">{quoted(each.text, 160)}</td></tr>'
            for each in prompts.most
        )
        boxes.append(f'<h3>prompts with the most rows</h3><table class="bars"><tbody>{listed}</tbody></table>')
    boxes += [
        f'<h3>near copies, Jaccard {pair.jaccard:.2f}</h3><p class="quote">{quoted(pair.first, 300)}</p>'
        f'<p class="quote">{quoted(pair.second, 300)}</p>'
        for pair in near.pairs
    ]
    return content + (f"<br>{cards(boxes)}" if boxes else "")


def _taken(survey: Survey) -> str:
    total = survey.num_rows + survey.num_excluded
    rows = []
    for taken in survey.taken:
        where = f'<span class="quiet">{quoted(taken.where, 120)}</span><br>' if taken.where else ""
        texts = "\n\n".join(text for text in (taken.prompt, taken.reply) if text)
        shown = f"<details><summary>the row</summary>{quoted(texts, 2000)}</details>" if texts else ""
        share = taken.num / total
        rows.append(
            [
                (quoted(taken.reason), taken.reason),
                number(taken.num),
                number(share, f"{100 * share:.1f} %"),
                (track(taken.num / survey.taken[0].num), None),
                (f"{where}{quoted(taken.detail, 400)}{shown}", None),
            ]
        )
    return table(("reason", "rows", "share", "", "example"), rows)
