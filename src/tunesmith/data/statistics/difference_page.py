"""A difference of two data sets as a page."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.statistics.changes import word_changes
from tunesmith.data.statistics.difference import Difference, Shown
from tunesmith.data.statistics.page import cards, document, escape, figures, number, quoted, section, table
from tunesmith.data.statistics.side_by_side import Pairs, equal_tables, lengths, row_counts, tables

_LONGEST = 4000
_TAGS = {"removed": "del", "added": "ins"}


def difference_page(found: Difference) -> str:
    """One HTML file."""
    names = found.before.survey.name, found.after.survey.name
    heading = (
        f'<span class="sides"><span><b class="side-a">A</b> {quoted(names[0], 300)}</span>'
        f'<span><b class="side-b">B</b> {quoted(names[1], 300)}</span></span>'
    )
    return document(
        kind="two data sets",
        name=f"{names[0]} and {names[1]}",
        heading=heading,
        about="Rows are the same where their messages are, the system message aside.",
        figures=figures(_figures(found)),
        sections=_sections(found),
    )


def _figures(found: Difference) -> Iterator[tuple[str, str]]:
    yield f"{found.num_both:,}", "rows in both"
    yield f"{found.before.num_only:,}", "only in A"
    yield f"{found.after.num_only:,}", "only in B"
    yield f"{found.num_other_reply:,}", "same prompt, other reply"
    yield f"{sum(move.num for move in found.moves):,}", "moved"


def _sections(found: Difference) -> Iterator[str]:
    yield section("Rows", _rows(found))
    if len(found.fates) > 1:
        yield section("Where they ended", _pairs(found.fates))
    if found.moves:
        yield section("Moved", _moves(found), "Rows of both sets that ended elsewhere.")
    if found.changed_fields:
        listed = table(
            ("of a row in both", "rows"),
            [[(escape(each.name), None), number(each.num)] for each in found.changed_fields],
        )
        yield section("Changed beside the text", listed)
    yield section("Lengths", _lengths(found))
    boxes = [
        f"<h3>{escape(title)}</h3>{_pairs(pairs)}" for title, pairs in tables(found.before.survey, found.after.survey)
    ]
    equal = ", ".join(equal_tables(found.before.survey, found.after.survey))
    if boxes or equal:
        yield section("What the rows are", cards(boxes, wide=True), f"The same in both: {equal}." if equal else "")
    if found.other_reply:
        yield section(
            "Same prompt, other reply",
            _changes(found),
            f"The first {len(found.other_reply):,} of {found.num_other_reply:,}.",
        )
    for title, rows, num in (
        ("Only in A", found.only_before, found.before.num_only),
        ("Only in B", found.only_after, found.after.num_only),
    ):
        if rows:
            shown = "".join(f'<div class="card row">{_row(row)}</div>' for row in rows)
            yield section(title, f'<div class="rows">{shown}</div>', f"The first {len(rows):,} of {num:,}.")


def _rows(found: Difference) -> str:
    return table(
        ("", "A", "B"),
        [[(escape(what), None), number(a), number(b)] for what, a, b in row_counts(found)],
        sortable=False,
    )


def _pairs(pairs: Pairs) -> str:
    rows = [
        [(quoted(name, 120), name), number(a), number(b), number(b - a, f"{b - a:+,}" if a != b else "")]
        for name, (a, b) in pairs.items()
    ]
    return table(("", "A", "B", "change"), rows)


def _moves(found: Difference) -> str:
    rows = [
        [(quoted(move.before), move.before), (quoted(move.after), move.after), number(move.num)] for move in found.moves
    ]
    listed = table(("in A", "in B", "rows"), rows)
    shown = "".join(
        f'<div class="card row"><p class="where">{quoted(pair.before.fate)} → {quoted(pair.after.fate)}</p>'
        f'<p class="asked">{quoted(pair.before.prompt)}</p></div>'
        for pair in found.moved
    )
    return f'{listed}<br><div class="rows">{shown}</div>'


def _lengths(found: Difference) -> str:
    rows = []
    for part, unit, sides in lengths(found.before.survey, found.after.survey):
        for name, each in zip("AB", sides, strict=True):
            if each is not None:
                numbers = (each.min, each.median, each.mean, each.p90, each.p99, each.max)
                label = f'{escape(part)}, {unit} <b class="side-{name.lower()}">{name}</b>'
                rows.append([(label, None), *(number(value) for value in numbers)])
    return table(("", "min", "median", "mean", "90 %", "99 %", "max"), rows, sortable=False)


def _changes(found: Difference) -> str:
    boxes = ""
    for pair in found.other_reply:
        pieces = ""
        for kind, text in word_changes(pair.before.reply[:_LONGEST], pair.after.reply[:_LONGEST]):
            tag = _TAGS.get(kind)
            shown = escape(f" … {text} more" if kind == "left_out" else text)
            pieces += f"<{tag}>{shown}</{tag}>" if tag else shown
        boxes += (
            f'<div class="card row"><p class="where">{quoted(pair.before.where)} · {quoted(pair.after.where)}</p>'
            f'<p class="asked">{quoted(pair.before.prompt)}</p><bdi class="text" dir="auto">{pieces}</bdi></div>'
        )
    return f'<div class="rows">{boxes}</div>'


def _row(row: Shown) -> str:
    fate = f" · {row.fate}" if row.fate != "undecided" else ""
    asked = f'<p class="asked">{quoted(row.prompt)}</p>' if row.prompt else ""
    return f'<p class="where">{quoted(row.where + fate)}</p>{asked}{quoted(row.reply)}'
