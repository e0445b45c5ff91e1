"""The chat page in headless Chromium: it streams, stops, asks for a key, and no text of a model ever runs."""

from __future__ import annotations

from typing import Any

import pytest
from hostile import VECTORS
from scripted import ByteRenderer, RunningServer, ScriptedEngine

from tunesmith.server.served import ServedModel
from tunesmith.server.settings import ServerSettings

pytestmark = pytest.mark.browser


class Watched:
    """A page whose dialogs, foreign requests and errors are counted."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on(
            "request", lambda made: None if made.url.startswith(url) else self.faults.append(f"request {made.url}")
        )
        self.page.on("popup", lambda _: self.faults.append("popup"))
        self.page.goto(url + "/")
        self.page.wait_for_selector("#state.ready, #state.wrong")

    def ask(self, text: str) -> None:
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")
        self.page.wait_for_selector(".turn.user")

    def wait_idle(self) -> None:
        self.page.wait_for_selector("#stop", state="hidden")

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.context.close()


def _echo(prompt: str, _sampling: Any) -> list[str]:
    number = int(prompt.rstrip().removesuffix("assistant:").rstrip().rpartition("user: ")[2])
    text = VECTORS[number]
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def test_no_hostile_answer_runs_a_script_or_loads_anything(browser: Any) -> None:
    assert len(VECTORS) >= 30
    with RunningServer(ScriptedEngine(_echo)) as server, Watched(browser, server.url) as watched:
        for number, vector in enumerate(VECTORS):
            watched.ask(str(number))
            watched.wait_idle()
            shown = watched.page.locator(".turn.assistant .text").last
            assert (
                shown.locator("script, img, iframe, object, embed, svg, math, form, style, link, base, meta").count()
                == 0
            )
            for anchor in shown.locator("a").all():
                assert (anchor.get_attribute("href") or "").startswith(("http://", "https://")), vector
        watched.page.wait_for_timeout(300)
        assert watched.page.evaluate("() => window.hit") is None
        assert watched.faults == []
        assert watched.page.locator(".turn.assistant").count() == len(VECTORS)


def test_the_same_texts_as_model_name_question_and_error_do_nothing(browser: Any) -> None:
    model = ServedModel(id="<img src=x onerror=alert(1)>", renderer=ByteRenderer())
    engine = ScriptedEngine()
    with RunningServer(engine, model=model) as server, Watched(browser, server.url) as watched:
        assert watched.page.inner_text("#model") == model.id
        watched.ask("say <script>alert(1)</script>")
        watched.wait_idle()
        assert watched.page.locator(".turn.user .text").inner_text() == "say <script>alert(1)</script>"
        assert watched.page.locator(".turn.assistant .text").inner_text() == "<script>alert(1)</script>"
        assert watched.faults == []


def test_an_answer_streams_and_markdown_becomes_elements(browser: Any) -> None:
    answer = (
        "# Head\n\nSome **bold** and `code`.\n\n- one\n- two\n\n```py\nprint('<b>')\n```\n\n[ok](https://a.example/x)"
    )
    engine = ScriptedEngine(lambda _p, _s: list(answer), delay=0.002)
    with RunningServer(engine) as server, Watched(browser, server.url) as watched:
        watched.ask("hi")
        watched.wait_idle()
        text = watched.page.locator(".turn.assistant .text")
        assert text.locator("h3").inner_text() == "Head" and text.locator("li").count() == 2
        assert text.locator("strong").inner_text() == "bold" and text.locator("pre code").inner_text() == "print('<b>')"
        assert text.locator("a").get_attribute("rel") == "noopener noreferrer nofollow"
        assert "tokens/s" in watched.page.inner_text(".turn.assistant .note")


def test_stop_ends_the_answer_in_the_engine_and_keeps_what_was_said(browser: Any) -> None:
    engine = ScriptedEngine(lambda _p, _s: ["word "] * 2000, delay=0.01)
    with RunningServer(engine) as server, Watched(browser, server.url) as watched:
        watched.ask("hi")
        watched.page.locator(".turn.assistant .text", has_text="word word").wait_for()
        watched.page.click("#stop")
        watched.wait_idle()
        watched.page.wait_for_timeout(300)
        assert engine.running == 0 and engine.cancelled == 1
        assert watched.page.locator(".turn.assistant .note").inner_text().startswith("stopped")
        assert watched.page.locator(".turn.assistant .text").inner_text().startswith("word word")


def test_settings_reach_the_request_and_the_history_is_sent(browser: Any) -> None:
    engine = ScriptedEngine()
    with RunningServer(engine) as server, Watched(browser, server.url) as watched:
        watched.page.click("#toggle")
        watched.page.fill("#system", "Be brief.")
        watched.page.fill("#max-tokens", "5")
        watched.ask("say one")
        watched.wait_idle()
        watched.ask("say two")
        watched.wait_idle()
        prompt, sampling = engine.seen[-1]
        assert prompt == "system: Be brief.\nuser: say one\nassistant: one\nuser: say two\nassistant: "
        assert (sampling.temperature, sampling.max_tokens) == (0.0, 5)


def test_a_protected_server_asks_for_the_key_and_shows_errors(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_KEY", "correct-horse")
    settings = ServerSettings(api_key_envs=("DESK_KEY",))
    with RunningServer(ScriptedEngine(), settings) as server, Watched(browser, server.url) as watched:
        assert watched.page.is_visible("#key") and watched.page.inner_text("#state") == "needs an API key"
        watched.page.fill("#key", "wrong-horse")
        watched.page.press("#key", "Tab")
        watched.page.wait_for_timeout(200)
        watched.page.fill("#key", "correct-horse")
        watched.page.press("#key", "Tab")
        watched.page.wait_for_selector("#state.ready")
        watched.ask("refuse me")
        watched.page.wait_for_selector(".turn.wrong")
        assert watched.page.inner_text(".turn.wrong .text") == "the template refuses this conversation"
        watched.wait_idle()
        watched.ask("say fine")
        watched.wait_idle()
        assert watched.page.locator(".turn.assistant .text").last.inner_text() == "fine"
        assert watched.faults == []


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any) -> None:
    engine = ScriptedEngine(lambda _p, _s: ["x" * 400, "\n\n```\n", "y" * 400, "\n```\n"])
    with (
        RunningServer(engine) as server,
        Watched(browser, server.url, viewport={"width": 360, "height": 640}) as watched,
    ):
        watched.ask("z" * 300)
        watched.wait_idle()
        watched.page.click("#toggle")
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert watched.page.is_visible("#send")
