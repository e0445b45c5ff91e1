"""The report: what it says, and that no text of a model can become part of the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.judging.fields import Target
from tunesmith.judging.metrics import score_answer
from tunesmith.judging.report import embed_json, render_report, score_table_rows
from tunesmith.judging.scores import compute_scores, confusion, headline, regressions, verdict
from tunesmith.types import Completion, Message, Sample, Score, Usage

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["a", "b"]}, "reply": {"type": "string"}},
    "required": ["intent"],
}
TARGET = Target(True, SCHEMA, ("intent",), "reply")
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>alert(2)",
    "<img src=x onerror=alert(3)>",
    '"><svg/onload=alert(4)>',
    "\u2028alert(5)\u2029",
    "]]></textarea></style><script>alert(6)</script>",
    "${alert(7)} `$title $data` \\u003cscript>",
    "<a href=javascript:alert(8)>x</a>&lt;b&gt;&#60;script&#62;",
]


def sample(number: int, reference: str, answers: dict[str, Completion], prompt: str = "Hello?") -> Sample:
    scored = {name: score_answer(answer, reference, TARGET) for name, answer in answers.items()}
    for name, each in scored.items():
        if name != "teacher":
            each["loss"] = Score(value=2.0 if name == "base" else 1.0)
    messages = [Message(role="system", content="Be brief."), Message(role="user", content=prompt)]
    return Sample(id=f"id{number}", messages=messages, reference=reference, completions=answers, scores=scored)


def answer(intent: str, reply: str = "fine") -> Completion:
    return Completion(text=json.dumps({"intent": intent, "reply": reply}))


@pytest.fixture
def samples() -> list[Sample]:
    failed = Completion(text="", finish_reason="error", error="HTTP 500")
    cut = Completion(text="Sure! I", finish_reason="length", usage=Usage(completion_tokens=9))
    rows = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "c")]
    return [
        sample(number, answer(expected).text, {"base": cut, "tuned": answer(found), "teacher": failed if number else answer(expected)})
        for number, (expected, found) in enumerate(rows)
    ]  # fmt: skip


@pytest.fixture
def scores(samples: list[Sample]) -> dict:
    return compute_scores(samples, ["base", "tuned", "teacher"], {each.id: 10 for each in samples}, rng_seed=1)


def test_scores_hold_every_mean_with_error_and_counts(scores: dict) -> None:
    assert scores["tuned"]["field.intent"] == {"mean": 0.5, "stderr": 0.288675, "n": 4, "n_unscored": 0}
    assert scores["teacher"]["json_valid"] == {"mean": 1.0, "stderr": None, "n": 1, "n_unscored": 3}
    assert scores["base"]["perplexity"]["mean"] == 7.389056
    assert "loss" not in scores["teacher"]
    against_base = scores["comparisons"]["tuned_vs_base"]["json_valid"]
    assert (against_base["difference"], against_base["wins"], against_base["interval"]) == (1.0, 4, (1.0, 1.0))
    assert scores["comparisons"]["tuned_vs_base"]["loss"]["wins"] == 4  # lower is better
    assert scores["comparisons"]["tuned_vs_teacher"]["json_valid"]["n"] == 1
    assert headline(scores)["tuned.field.intent"] == 0.5
    json.dumps(scores, allow_nan=False)


def test_the_verdict_is_said_in_words(scores: dict) -> None:
    first, second, loss = verdict(scores)
    assert first == (
        "the tuned model answers with JSON that obeys the schema on 3 of 4 test rows; the base model on 0 of 4; "
        "the teacher on 1 of 1."
    )
    assert "every exact field right on 2 of 4" in second
    assert loss == "loss per token of the reference answers: tuned 1.00, base 2.00 (lower is better)."


def test_a_tuned_model_that_is_worse_beyond_chance_is_named() -> None:
    rows = [sample(n, answer("a").text, {"base": answer("a"), "tuned": answer("b")}) for n in range(8)]
    scores = compute_scores(rows, ["base", "tuned"], {}, rng_seed=1)
    assert regressions(scores) == ["intent: 0 against 1", "all exact fields: 0 against 1"]
    assert "Worse than the base model: intent" in render_report(rows, scores, TARGET, title="t", about="a")
    better = compute_scores(
        [sample(n, answer("a").text, {"base": answer("b"), "tuned": answer("a")}) for n in range(8)],
        ["base", "tuned"], {}, rng_seed=1,
    )  # fmt: skip
    assert regressions(better) == []


def test_the_confusion_table_adds_up(samples: list[Sample]) -> None:
    table = confusion(samples, "tuned", "intent", TARGET)
    assert table == {
        "labels": ["a", "b"],
        "columns": ["a", "b", "other", "not JSON"],
        "counts": [[1, 1, 0, 0], [0, 1, 1, 0]],
    }
    base = confusion(samples, "base", "intent", TARGET)
    teacher = confusion(samples, "teacher", "intent", TARGET)
    assert base is not None and base["counts"] == [[0, 0, 0, 2], [0, 0, 0, 2]]
    assert teacher is not None and teacher["counts"] == [[1, 0, 0, 0], [0, 0, 0, 0]]  # unanswered rows are not wrong
    assert confusion(samples, "tuned", "reply", TARGET) is None


def test_the_score_table_has_a_row_per_metric_and_a_cell_per_contestant(scores: dict) -> None:
    rows = {row[0]: row[1:] for row in score_table_rows(scores)}
    assert rows[""] == ["base", "tuned", "teacher", "tuned - base"]
    assert rows["intent"][:3] == ["0.0 %  ± 0.0 (0/4)", "50.0 %  ± 28.9 (2/4)", "100.0 %  (1/1) (3 unscored)"]
    assert rows["loss per token"][2] == ""
    assert rows["loss per token"][3] == "-1.000  [-1.000, -1.000] 4/0/0"
    assert score_table_rows({"comparisons": {}}) == [[""]]


class _Page(HTMLParser):
    """Every tag of the file, and what its script elements hold, as a browser would split them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


@pytest.fixture
def hostile_page() -> str:
    text = "\n".join(HOSTILE)
    rows = [
        sample(
            n, answer("a", each).text, {"base": Completion(text=each), "tuned": answer("a", text)}, prompt=each + text
        )
        for n, each in enumerate(HOSTILE)
    ]
    rows[0].completions["base"] = Completion(text="", finish_reason="error", error=text)
    rows[0].id = HOSTILE[0]
    scores = compute_scores(rows, ["base", "tuned"], {}, rng_seed=1)
    return render_report(rows, scores, TARGET, title=f"model {text}", about=text)


def test_hostile_text_stays_text(hostile_page: str) -> None:
    page = _Page(hostile_page)
    assert page.tags.count("script") == 2
    assert not {"img", "svg", "a", "textarea", "b", "iframe", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    data = json.loads(page.scripts[0])
    assert data["samples"][2]["answers"]["base"]["text"] == HOSTILE[2]
    assert not set("<>&\u2028\u2029") & set(page.scripts[0])


def test_the_page_needs_nothing_from_outside_and_its_policy_allows_only_its_own_two_blocks(hostile_page: str) -> None:
    import base64
    import hashlib

    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', hostile_page)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    for tag in ("script", "style"):
        body = re.findall(rf"<{tag}>(.*?)</{tag}>", hostile_page, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "://" not in re.sub(r'<script type="application/json".*?</script>', "", hostile_page, flags=re.DOTALL)


def test_equal_results_have_equal_bytes_and_an_empty_evaluation_says_so(samples: list[Sample], scores: dict) -> None:
    first, again = (render_report(samples, scores, TARGET, title="t", about="a") for _ in range(2))
    assert first == again
    nothing = compute_scores([], [], {}, rng_seed=1)
    assert "Nothing was evaluated" in render_report([], nothing, TARGET, title="t", about="a")


def test_embedded_json_survives_half_a_surrogate() -> None:
    assert json.loads(embed_json({"a": "\ud800<"})) == {"a": "?<"}


@pytest.mark.browser
def test_in_a_browser_nothing_hostile_runs_and_filter_search_and_keys_work(
    browser: Any, hostile_page: str, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(hostile_page, encoding="utf-8")
    page = browser.new_page()
    events: list[str] = []
    page.on("dialog", lambda dialog: (events.append("dialog"), dialog.dismiss()))
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.append(request.url.split("/")[-1]))
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator(".sample").count() == len(HOSTILE)
    assert HOSTILE[2] in page.locator(".answer.base pre").nth(2).inner_text()
    page.select_option("#filter", label="base: cut off or no answer")
    assert page.inner_text("#count") == f"1 of {len(HOSTILE)} rows"
    page.select_option("#filter", label="All rows")
    page.keyboard.press("Escape")
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "row-2"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.id") == "row-1"
    page.keyboard.press("/")
    page.keyboard.type("NOWHERE to be found")
    assert page.inner_text("#count") == f"0 of {len(HOSTILE)} rows"
    assert events == ["report.html"]
