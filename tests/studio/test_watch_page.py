"""The page: nothing of a run becomes markup, nothing is loaded; then live in headless Chromium."""

from __future__ import annotations

import inspect
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from made_runs import START, append, beginning, new_run, steps, warning
from starlette.routing import Route
from starlette.testclient import TestClient
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import RecipeError, StoreError
from tunesmith.store import Run
from tunesmith.studio.curves import RunFollower
from tunesmith.studio.watch_page import watch_page
from tunesmith.studio.watch_server import create_app, serve_page

HOSTILE = [
    "</script><script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "\u202egpj.exe\u2066 turned \x1b]8;;https://evil.example\x07",
    "$script ${style} <!-- <iframe src=//evil.example></iframe> -->",
]


def tunesmith(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["watch", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """One that was interrupted, with hostile notes, and one that goes on."""
    first, second = new_run(tmp_path, digest="a"), new_run(tmp_path, digest="b")
    append(first, [*beginning(first), *steps(range(1, 11), START), *map(warning, HOSTILE)])
    append(second, [*beginning(second), *steps(range(1, 4), START)])
    first.update(status="interrupted")
    return [first, second]


def copy_of(runs: list[Run]) -> str:
    followers = [RunFollower(run) for run in runs]
    for follower in followers:
        follower.update()
    return watch_page([follower.as_json(100) for follower in followers], now=START + 100, live=False)


class Elements(HTMLParser):
    """Every tag, and what may load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loading: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loading += [each for each in attrs if each[0] in ("src", "href", "srcset", "data", "style", "onerror")]


def test_the_page_is_whole_in_itself_and_no_text_of_a_run_is_markup(runs: list[Run]) -> None:
    page = copy_of(runs)
    elements = Elements(page)
    assert elements.loading == [] and elements.tags.count("script") == 2 and "iframe" not in elements.tags
    assert "connect-src" not in page and "default-src 'none'" in page.replace("&#x27;", "'")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page.replace("https://evil.example", ""))


def test_a_copy_is_written_whole_and_says_where(runs: list[Run], tmp_path: Path) -> None:
    out = tmp_path / "pages" / "curves.html"
    said = tunesmith("desk-001", "desk-002", "desk-001", "--root", tmp_path, "--out", out)
    assert f"page → {out}" in said.replace("\n", "")
    page = out.read_text(encoding="utf-8")
    assert '"live":false' in page and page.count('"name":"desk-00') == 2


def test_what_cannot_be_shown_is_said(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run 'disk'"):
        tunesmith("disk", "--root", tmp_path)
    with pytest.raises(RecipeError, match="this is a folder"):
        tunesmith("--root", tmp_path, "--out", tmp_path)


def test_a_taken_port_is_said(runs: list[Run]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StoreError, match="cannot listen on"):
            serve_page([RunFollower(runs[0])], taken.getsockname()[1], lambda _: None)


def test_the_server_answers_this_machine_only_and_forbids_frames(runs: list[Run]) -> None:
    client = TestClient(create_app([RunFollower(run) for run in runs]), base_url="http://127.0.0.1:80")
    answer = client.get("/")
    assert answer.status_code == 200 and '"live":true' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/").status_code == 405


def test_runs_are_read_by_one_thread_alone(runs: list[Run]) -> None:
    """An answer made in another one would read runs while they change."""
    app = create_app([RunFollower(run) for run in runs])
    assert [inspect.iscoroutinefunction(route.endpoint) for route in app.routes if isinstance(route, Route)] == [
        True
    ] * 2


class Live:
    """The server in a thread."""

    def __init__(self, runs: list[Run]) -> None:
        config = uvicorn.Config(
            create_app([RunFollower(run) for run in runs]),
            port=0,
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.02)
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)


def open_page(browser: Any, url: str, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_context(**options).new_page()
    faults: list[str] = []
    page.on("dialog", lambda dialog: (faults.append("dialog"), dialog.dismiss()))
    page.on("pageerror", lambda error: faults.append(f"error {error}"))
    page.on("console", lambda message: faults.append(f"console {message.text}"))
    page.on("request", lambda made: None if made.url.startswith(url) else faults.append(f"request {made.url}"))
    page.goto(url)
    return page, faults


@pytest.mark.browser
def test_the_page_follows_runs_live_and_draws_them_on_the_same_axes(browser: Any, runs: list[Run]) -> None:
    with Live(runs) as url:
        page, faults = open_page(browser, url)
        page.wait_for_selector("#link:has-text('live')")
        captions = [each.inner_text() for each in page.locator("figcaption").all()]
        assert captions == ["loss", "gradient norm", "learning rate", "tokens per second"]
        assert page.locator(".chart.first path.line").count() == 2
        second = page.locator(".run").nth(1)
        assert "3 of 10" in second.inner_text() and "14 s" in second.inner_text()  # seven steps of two seconds
        assert "no event for" in second.locator(".age.silent").inner_text()  # it says it runs, and its process is gone
        append(runs[1], steps(range(4, 6), START + 6))
        page.wait_for_selector(".run:nth-of-type(2) dd:has-text('5 of 10')")
        assert "desk-002: 0.8 at step 5" in page.locator(".chart.first svg").get_attribute("aria-label")
        page.click(".run:nth-of-type(1) button")
        assert page.locator(".chart.first path.line").count() == 1
        page.click("#axis button:has-text('time')")
        assert page.locator(".chart.first svg text", has_text="10 s").count() == 1
        page.check("#log")
        box = page.locator(".chart.first svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60)
        tip = page.locator(".chart.first .tip")
        assert tip.is_visible() and "0.8" in tip.inner_text() and "desk-002" in tip.inner_text()
        assert faults == []


@pytest.mark.browser
def test_no_text_of_a_run_runs_or_loads_anything(browser: Any, runs: list[Run], tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    copy.write_text(copy_of(runs), encoding="utf-8")
    page, faults = open_page(browser, copy.as_uri(), color_scheme="dark")
    assert page.evaluate("window.hit") is None and faults == []
    said = [each.inner_text() for each in page.locator("#notes .message").all()]
    assert HOSTILE[0] in said and HOSTILE[1] in said
    assert any("‹U+202E›gpj.exe‹U+2066›" in each and "‹U+001B›" in each for each in said)
    assert page.locator(".age").first.inner_text().endswith("before this copy was made")


@pytest.mark.browser
def test_a_run_without_a_step_yet_says_so(browser: Any, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    append(run, beginning(run))
    copy = tmp_path / "copy.html"
    copy.write_text(copy_of([run]), encoding="utf-8")
    page, faults = open_page(browser, copy.as_uri())
    assert page.locator("#empty").is_visible() and page.locator(".chart").count() == 0 and faults == []
