"""The page of curves: one HTML file that loads nothing from elsewhere, for a server that feeds it or as a copy to keep.

Every text of a run (names, notes) reaches the page as JSON and is shown as text; the content policy allows the two inline
blocks of this file by their digests, and a connection to its own server where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from tunesmith import __version__
from tunesmith.data.statistics.page import escape
from tunesmith.data.statistics.texts import one_line, visible
from tunesmith.judging.report import embed_json
from tunesmith.text.page_head import content_policy, page_head

POINTS = 1_000
"""Of one curve: more than a screen has columns for."""


def watch_page(runs: Sequence[dict[str, Any]], *, now: float, live: bool) -> str:
    """The whole page. runs: RunFollower.as_json of each. live: it asks its server for more; else it shows these."""
    style, script = _style(), _part("watch.js")
    names = ", ".join(str(run["name"]) for run in runs)
    return Template(_part("watch.html")).substitute(
        head=page_head(visible(one_line(f"{names} · training", 120)), style, policy=page_policy(live=live)),
        data=embed_json({"live": live, "now": now, "runs": list(runs)}),
        footer=escape(f"tunesmith {__version__}. This page loads nothing from elsewhere."),
        script=script,
    )


def page_policy(*, live: bool) -> str:
    """The content security policy of the page."""
    return content_policy(_style(), _part("watch.js"), *(["connect-src 'self'"] if live else []))


def _style() -> str:
    """The look of all pages of numbers, then what only this one has."""
    shared = (files("tunesmith.data.statistics") / "page" / "page.css").read_text(encoding="utf-8")
    return shared + _part("watch.css")


def _part(name: str) -> str:
    return (files("tunesmith.studio") / "page" / name).read_text(encoding="utf-8")
