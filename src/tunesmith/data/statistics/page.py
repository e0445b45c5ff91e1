"""A page of statistics: one HTML file that loads nothing, and the pieces it is made of.

Owns how numbers and texts look on a page. Every text of a row is untrusted: it is escaped, its control and direction
characters are written out, and it cannot turn the line around it (`bdi`). The content policy allows the two inline blocks of
this file by their digests, nothing else. Knows no survey and no difference.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template

from tunesmith import __version__
from tunesmith.data.statistics.counts import Count
from tunesmith.data.statistics.lengths import Distribution
from tunesmith.data.statistics.texts import one_line, shortened, visible
from tunesmith.text.page_head import content_policy, page_head

_LONGEST = 600


def document(*, kind: str, name: str, heading: str, about: str, figures: str, sections: Iterable[str]) -> str:
    """The whole page. kind and name are plain text; the others are made by the functions below."""
    page = files("tunesmith.data.statistics") / "page"
    style = (page / "page.css").read_text(encoding="utf-8")
    script = (page / "page.js").read_text(encoding="utf-8")
    return Template((page / "page.html").read_text(encoding="utf-8")).substitute(
        head=page_head(visible(one_line(f"{name} · {kind}", 120)), style, policy=content_policy(style, script)),
        kind=escape(kind),
        heading=heading,
        about=about,
        figures=figures,
        sections="\n".join(sections),
        footer=escape(f"Made by tunesmith {__version__}. This file loads nothing and runs no text of the data."),
        script=script,
    )


def escape(text: str) -> str:
    """Text that may stand anywhere on the page, attributes too."""
    return html.escape(visible(text)).encode("utf-8", "replace").decode()


def quoted(text: str, length: int = _LONGEST) -> str:
    """A text of the data, cut, in its own direction."""
    shown, left_out = shortened(text, length)
    more = f' <span class="quiet">… {left_out:,} more characters</span>' if left_out else ""
    return f'<bdi class="text" dir="auto">{escape(shown)}</bdi>{more}'


def section(title: str, content: str, note: str = "") -> str:
    """A heading with what is under it; note is plain text."""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{content}</section>"


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """The numbers that matter most: (number, what it counts)."""
    items = "".join(f"<li><b>{escape(number)}</b><span>{escape(what)}</span></li>" for number, what in pairs)
    return f'<ul class="figures">{items}</ul>'


def cards(contents: Iterable[str], *, wide: bool = False) -> str:
    """Boxes in a grid."""
    boxes = "".join(f'<div class="card">{content}</div>' for content in contents)
    return f'<div class="grid{" wide" if wide else ""}">{boxes}</div>'


def track(share: float) -> str:
    """A bar that is filled to a share of 0 to 1."""
    filled = 100 * min(1.0, max(0.0, share))
    return (
        '<svg class="track" viewBox="0 0 100 6" preserveAspectRatio="none" height="6" role="img" '
        f'aria-label="{filled:.1f} percent"><rect class="back" width="100" height="6"/>'
        f'<rect class="fill" width="{max(0.6, filled) if share else 0:.2f}" height="6"/></svg>'
    )


def bars(title: str, counts: Sequence[Count]) -> str:
    """Names with their number, share and bar; the longest bar is the largest number."""
    total = sum(count.num for count in counts) or 1
    most = max((count.num for count in counts), default=1) or 1
    rows = "".join(
        f'<tr><td class="name">{quoted(one_line(count.name, 90))}</td><td class="num">{count.num:,}</td>'
        f'<td class="share">{100 * count.num / total:.1f} %</td><td class="bar">{track(count.num / most)}</td></tr>'
        for count in counts
    )
    return f'<h3>{escape(title)}</h3><table class="bars"><tbody>{rows}</tbody></table>'


def table(heads: Sequence[str], rows: Iterable[Sequence[tuple[str, str | None]]], *, sortable: bool = True) -> str:
    """heads: plain text. A cell is (HTML, value to sort by); a number as value sets the cell right. None = the text sorts."""
    body = ""
    for row in rows:
        body += "<tr>" + "".join(_cell(content, value) for content, value in row) + "</tr>"
    head = "".join(
        f'<th scope="col"{_number_class(index, rows)}>{escape(name)}</th>' for index, name in enumerate(heads)
    )
    sorting = " sortable" if sortable else ""
    return f'<div class="scroll"><table class="list{sorting}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float | int, shown: str | None = None) -> tuple[str, str]:
    """A cell of a table."""
    text = shown if shown is not None else (f"{value:,.1f}" if isinstance(value, float) else f"{value:,}")
    return escape(text), str(value)


def _cell(content: str, value: str | None) -> str:
    if value is None:
        return f"<td>{content}</td>"
    kind = ' class="number"' if _is_number(value) else ""
    return f'<td{kind} data-value="{escape(value)}">{content}</td>'


def _number_class(index: int, rows: Iterable[Sequence[tuple[str, str | None]]]) -> str:
    first = next(iter(rows), None) if isinstance(rows, Sequence) else None
    value = first[index][1] if first is not None and index < len(first) else None
    return ' class="number"' if value is not None and _is_number(value) else ""


def _is_number(value: str) -> bool:
    return value.replace(".", "", 1).replace("-", "", 1).replace("+", "", 1).isdigit()


_WIDTH, _HEIGHT, _WIDEST_BAR = 320, 96, 40


def histogram(found: Distribution) -> str:
    """Bars from the smallest length to the 99th percentile, the median as a dashed line."""
    most = max(each.num for each in found.bins) or 1
    width = min(_WIDEST_BAR, _WIDTH / len(found.bins))
    low, high = found.bins[0].low, found.bins[-1].high
    parts = []
    for index, each in enumerate(found.bins):
        height = (_HEIGHT - 4) * each.num / most
        last = index == len(found.bins) - 1 and found.max >= each.high
        end = f"{each.low:,} and more" if last else f"{each.low:,} to {each.high - 1:,}"
        title = f"{end if each.high - each.low > 1 or last else f'{each.low:,}'}: {each.num:,} rows"
        parts.append(
            f'<rect x="{index * width + 0.75:.2f}" y="{_HEIGHT - height:.2f}" width="{max(1.0, width - 1.5):.2f}" '
            f'height="{max(height, 1.0 if each.num else 0.0):.2f}" rx="1.5"><title>{escape(title)}</title></rect>'
        )
    middle = width * len(found.bins) * (found.median + 0.5 - low) / max(1, high - low)
    parts.append(f'<line class="rule" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="0" y2="{_HEIGHT}"/>')
    ends = f'<text x="0" y="{_HEIGHT + 14}">{low:,}</text>'
    if len(found.bins) > 1:
        above = "+" if found.max >= high else ""
        ends += (
            f'<text x="{width * len(found.bins):.1f}" y="{_HEIGHT + 14}" text-anchor="end">{high - 1:,}{above}</text>'
        )
    label = f"median {found.median:,}, from {found.min:,} to {found.max:,}"
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT + 18}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}{ends}</svg>{_quantiles(found)}"
    )


def _quantiles(found: Distribution) -> str:
    values = (
        ("min", f"{found.min:,}"), ("median", f"{found.median:,}"), ("mean", f"{found.mean:,.1f}"), ("90 %", f"{found.p90:,}"),
        ("99 %", f"{found.p99:,}"), ("max", f"{found.max:,}"),
    )  # fmt: skip
    return (
        '<dl class="quantiles">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in values)
        + "</dl>"
    )
