"""The wheel of verbs: root verbs on the inner ring, their nouns on the outer one (Self-Instruct, figure 3), as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.data.statistics.page import escape
from tunesmith.data.statistics.survey import Verb
from tunesmith.data.statistics.verbs import QUESTION

_SIZE, _HOLE, _INNER, _OUTER = 560, 62, 158, 236
_NUM_HUES = 10
_LABEL_HEIGHT = 12
_REST = "…"


def wheel(verbs: Sequence[Verb]) -> str:
    """Angles are shares of the rows of these verbs; a verb's part without one of its shown nouns stays pale and nameless."""
    total = sum(verb.num for verb in verbs)
    if not total:
        return ""
    parts: list[str] = []
    angle = 0.0
    for place, verb in enumerate(verbs):
        hue = f"h{place % _NUM_HUES}"
        span = math.tau * verb.num / total
        name = "questions" if verb.verb == QUESTION else verb.verb
        parts.append(_slice(angle, span, _HOLE, _INNER, hue, f"{name}: {verb.num:,}"))
        if span * (_HOLE + _INNER) / 2 >= _LABEL_HEIGHT:
            parts.append(_label(angle + span / 2, _HOLE, _INNER, name, ""))
        begin = angle
        for noun in verb.nouns:
            width = math.tau * noun.num / total
            parts.append(_slice(begin, width, _INNER + 2, _OUTER, f"{hue} pale", f"{name} {noun.name}: {noun.num:,}"))
            if width * (_INNER + _OUTER) / 2 >= _LABEL_HEIGHT:
                parts.append(_label(begin + width / 2, _INNER, _OUTER, noun.name, "outer"))
            begin += width
        angle += span
    half = _SIZE / 2
    return (
        f'<svg class="wheel" viewBox="{-half} {-half} {_SIZE} {_SIZE}" role="img" aria-label="verbs and their nouns">'
        f"{''.join(parts)}</svg>"
    )


def _slice(start: float, span: float, inner: float, outer: float, kind: str, title: str) -> str:
    span = min(span, math.tau - 1e-4)  # an arc cannot end where it begins
    (a, b), (c, d) = _point(start, outer), _point(start + span, outer)
    (e, f), (g, h) = _point(start + span, inner), _point(start, inner)
    large = int(span > math.pi)
    path = f"M{a:.2f} {b:.2f}A{outer} {outer} 0 {large} 1 {c:.2f} {d:.2f}L{e:.2f} {f:.2f}A{inner} {inner} 0 {large} 0 {g:.2f} {h:.2f}Z"
    return f'<path class="{kind}" d="{path}"><title>{escape(title)}</title></path>'


def _label(angle: float, inner: float, outer: float, text: str, kind: str) -> str:
    """Along the radius, never upside down, cut where the ring is too narrow."""
    room = int((outer - inner) / 6.4)
    shown = text if len(text) <= room else text[: room - 1] + _REST
    x, y = _point(angle, (inner + outer) / 2)
    turned = math.degrees(angle) - 90
    turned += 180 if 90 < turned % 360 < 270 else 0
    named = f' class="{kind}"' if kind else ""
    return (
        f'<text{named} x="{x:.2f}" y="{y:.2f}" text-anchor="middle" dominant-baseline="central" '
        f'transform="rotate({turned:.2f} {x:.2f} {y:.2f})">{escape(shown)}</text>'
    )


def _point(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.sin(angle), -radius * math.cos(angle)
