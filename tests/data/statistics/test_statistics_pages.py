"""The pages as files: nothing of the data becomes markup, and nothing is loaded. Then in headless Chromium."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.statistics.difference import find_difference
from tunesmith.data.statistics.difference_page import difference_page
from tunesmith.data.statistics.survey import SurveyOptions, survey
from tunesmith.data.statistics.survey_page import survey_page
from tunesmith.types import Conversation, Excluded, Message

HOSTILE = [
    "</script><script>window.hit=1</script>",
    "</style><style>*{display:none}</style>",
    '"><img src=x onerror=window.hit=1>',
    "' onmouseover='window.hit=1",
    "<svg onload=window.hit=1>",
    "</title></textarea></bdi></td></table><h1>taken over</h1>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<!-- <iframe src=//evil.example></iframe> -->",
    "\u202egpj.exe\u2066 turned \x1b]8;;https://evil.example\x07 \x00",
    "$script $title ${style}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "half a surrogate \ud800 here",
]
OPTIONS = SurveyOptions(max_rows=100, num_clusters=3, num_names=50, rng_seed=1, num_threads=1, closely=True)


def hostile_rows(suffix: str = "") -> list[Any]:
    rows: list[Any] = []
    for text in HOSTILE:
        safe = text.encode("utf-8", "replace").decode()
        messages = [Message(role="user", content=f"Write {text}"), Message(role="assistant", content=text + suffix)]
        row = Conversation(
            messages=messages, source=f"{safe}:1", licence=safe, id=f"{len(rows):016x}", metadata={"model": safe}
        )
        rows += [row, row, Excluded(reason=safe, detail=safe, where=safe, conversation=row)]
    return rows


def stats_page(rows: list[Any]) -> str:
    found = survey(rows, name=HOSTILE[0], options=OPTIONS, count_tokens=None, on_rows=lambda _: None)
    return survey_page(found, {"rows_in": len(rows)})


def diff_page() -> str:
    before, after = hostile_rows(), hostile_rows(" <b>changed</b> \u202e")
    found = find_difference(
        lambda: iter(before), lambda: iter([*after, *before[:1]]), names=(HOSTILE[2], HOSTILE[0]), options=OPTIONS,
        num_examples=20, count_tokens=None, on_rows=lambda _: None,
    )  # fmt: skip
    return difference_page(found)


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module", params=["stats", "diff"])
def page(request: pytest.FixtureRequest) -> str:
    return stats_page(hostile_rows()) if request.param == "stats" else diff_page()


def test_no_text_of_the_data_becomes_a_tag_or_an_attribute(page: str) -> None:
    found = Tags(page)
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base", "link", "a"} & set(found.tags)
    assert found.tags.count("meta") == 5 and found.tags.count("h1") == 1
    assert not {
        name for name in found.attributes if name.startswith("on") or name in ("src", "href", "style", "action")
    }


def test_the_page_names_no_address_but_in_text_and_keeps_no_control_character(page: str) -> None:
    assert "default-src 'none'" in page and "unsafe" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert "‹U+202E›" in page and "‹U+001B›" in page
    page.encode("utf-8")


def test_names_of_the_template_in_the_data_stay_text(page: str) -> None:
    assert "$script $title ${style}" in page


def test_a_page_of_no_row_says_so() -> None:
    assert "no row" in stats_page([])


def opened(browser: Any, text: str, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    page = browser.new_context(**options).new_page()
    faults: list[str] = []
    page.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: faults.append(f"error {error}"))
    page.on("console", lambda message: faults.append(f"console {message.text}"))
    page.on("request", lambda made: None if made.url == path.as_uri() else faults.append(f"request {made.url}"))
    page.goto(path.as_uri())
    return page, faults


@pytest.mark.browser
def test_in_a_browser_nothing_runs_nothing_loads_and_no_policy_is_broken(
    browser: Any, page: str, tmp_path: Path
) -> None:
    shown, faults = opened(browser, page, tmp_path)
    for details in shown.locator("details").all():
        details.locator("summary").click()
    shown.wait_for_timeout(200)
    assert shown.evaluate("() => window.hit") is None and faults == []
    assert "<svg onload=window.hit=1>" in shown.inner_text("main")


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_by_number_and_again_the_other_way(browser: Any, tmp_path: Path) -> None:
    rows = [Excluded(reason=f"reason {n}") for n in range(12) for _ in range(n + 1)]
    shown, _ = opened(browser, stats_page(rows), tmp_path)
    table = shown.locator("table.sortable").last
    column = table.locator("tbody tr td:nth-child(2)")
    heading = table.locator("th", has_text="rows").locator("button")
    heading.click()
    assert column.all_inner_texts() == [str(n) for n in range(12, 0, -1)]
    heading.click()
    assert column.all_inner_texts() == [str(n) for n in range(1, 13)]
    assert table.locator("th[aria-sort=ascending]").count() == 1


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_narrow_window_and_follows_the_scheme(browser: Any, tmp_path: Path, scheme: str) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": 390, "height": 800}}
    shown, faults = opened(browser, stats_page(hostile_rows()), tmp_path, **options)
    assert shown.evaluate("() => document.documentElement.scrollWidth") <= 390
    ground = shown.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")
    assert faults == []
