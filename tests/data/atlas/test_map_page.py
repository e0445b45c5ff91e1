"""The map's page in headless Chromium: it is turned, searched, clicked and filled by a dropped file, and no text of a row
ever runs. Both painters are driven: WebGL by software, and the raster that replaces it there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.atlas.page import map_page

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "server"))
from hostile import VECTORS

PAINTERS = ("raster", "webgl")
MIDDLE = (790, 400)  # of the part of the picture that no panel covers
pytestmark = pytest.mark.browser


def a_map(texts: list[str], points: list[list[float]] | None = None, **changes: Any) -> dict[str, Any]:
    """A map whose first row lies in the middle, with the others around it."""
    around = [[(-1) ** n * 0.9, (-1) ** (n // 2) * 0.9, 0.4 * (n // 4 % 3 - 1)] for n in range(len(texts) - 1)]
    places = points or [[0, 0, 0], *around]
    flat = [value for place in places for value in place]
    turned = [value for place in places for value in (place[1], -place[0], place[2])]
    return {
        "tunesmith_map": 1,
        "title": "rows.jsonl",
        "embedding": "vectors of the prompt",
        "counts": {"placed": len(texts)},
        "notes": [],
        "projections": [
            {"name": "pca", "title": "PCA", "note": "widest axes", "points": flat},
            {"name": "umap", "title": "UMAP", "note": "neighbours", "points": turned},
        ],
        "groupings": [
            {
                "name": "cluster",
                "title": "Cluster",
                "labels": ["even", "odd"],
                "of": [n % 2 for n in range(len(texts))],
            },
            {"name": "all", "title": "Split", "labels": ["train"], "of": [0] * len(texts)},
        ],
        "rows": [
            {
                "id": f"id{n}",
                "source": f"rows.jsonl:{n + 1}",
                "licence": "CC-BY-4.0",
                "metadata": {"model": "Teacher 1"},
                "turns": [{"role": "user", "text": text}, {"role": "assistant", "text": f"answer {n}"}],
            }
            for n, text in enumerate(texts)
        ],
        **changes,
    }


class Opened:
    """A page from the disk whose dialogs, requests and errors are counted."""

    def __init__(
        self, browser: Any, folder: Path, data: dict[str, Any] | None, hash_: str = "", **options: Any
    ) -> None:
        path = folder / "map.html"
        path.write_bytes(map_page(data))
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        url = path.as_uri()
        self.page.on("request", lambda made: None if made.url.startswith(url) else self.faults.append(made.url))
        self.page.on("popup", lambda _: self.faults.append("popup"))
        self.page.goto(url + hash_)
        self.page.wait_for_selector("#title, #welcome:visible", state="attached")
        self.page.wait_for_selector("html[data-painter]", state="attached")

    def drop(self, text: str, name: str = "map.json") -> None:
        self.page.evaluate(
            """([text, name]) => {
                const carried = new DataTransfer();
                carried.items.add(new File([text], name, { type: "application/json" }));
                for (const kind of ["dragenter", "dragover", "drop"])
                    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
            }""",
            [text, name],
        )

    def press(self, key: str) -> None:
        self.page.focus("#space")
        self.page.keyboard.press(key)

    def square(self, x: int, y: int) -> bytes:
        """A small part of the picture, as a PNG."""
        return self.page.screenshot(clip={"x": x - 5, "y": y - 5, "width": 11, "height": 11})

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.context.close()


@pytest.mark.parametrize("painter", PAINTERS)
def test_a_click_on_a_point_shows_its_whole_conversation(browser: Any, tmp_path: Path, painter: str) -> None:
    with Opened(browser, tmp_path, a_map([f"question {n}" for n in range(13)]), f"#{painter}") as opened:
        page = opened.page
        page.wait_for_selector("#legend li")
        assert page.evaluate("document.documentElement.dataset.painter") == painter
        page.mouse.move(*MIDDLE)
        page.wait_for_selector("#hover:visible")
        assert "question 0" in page.inner_text("#hover") and "even" in page.inner_text("#hover")
        page.mouse.click(*MIDDLE)
        page.wait_for_selector("#detail:visible")
        assert page.inner_text("#detail h2") == "Row 1 of 13"
        assert page.locator("#detail .said").all_inner_texts() == ["question 0", "answer 0"]
        facts = page.inner_text("#detail dl")
        assert "rows.jsonl:1" in facts and "CC-BY-4.0" in facts and "Teacher 1" in facts
        page.keyboard.press("Escape")
        page.wait_for_selector("#detail", state="hidden")
        assert opened.faults == []


def test_hostile_rows_are_shown_as_text_and_nothing_of_them_runs(browser: Any, tmp_path: Path) -> None:
    data = a_map(VECTORS)
    for row, vector in zip(data["rows"], VECTORS, strict=True):
        row |= {"id": vector, "source": vector, "licence": vector, "reason": vector, "detail": vector}
        row["metadata"] = {vector: vector}
        row["turns"][1]["role"] = vector
    data |= {"title": VECTORS[0], "embedding": VECTORS[2], "notes": list(VECTORS), "counts": {VECTORS[2]: 3}}
    data["groupings"] = [
        {"name": v, "title": v, "labels": [v, f"{v} 2"], "of": [n % 2 for n in range(len(VECTORS))]}
        for v in VECTORS[:5]
    ]
    data["projections"][0] |= {"title": VECTORS[0], "note": VECTORS[2]}
    for dropped in (False, True):
        with Opened(browser, tmp_path, None if dropped else data) as opened:
            page = opened.page
            if dropped:
                opened.drop(json.dumps(data), name="<img src=x onerror=alert(1)>.json")
            page.wait_for_selector("#legend li")
            page.fill("#query", "script")
            page.wait_for_selector("#hits li")
            for number in range(len(VECTORS)):
                opened.press("n")
                assert page.locator("#detail .said").first.inner_text().strip()[:3] != "" or not VECTORS[number].strip()
            assert (
                page.locator("main img, aside img, iframe, object, embed, svg, math, form, base, aside style").count()
                == 0
            )
            assert page.locator("script").count() == 2 and page.locator("a").count() == 0
            page.wait_for_timeout(200)
            assert page.evaluate("() => window.hit") is None
            assert opened.faults == []


def test_characters_that_turn_or_hide_text_are_named(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, a_map(["safe\u202etxt.exe\u2066\u0000x\u200by"])) as opened:
        opened.page.wait_for_selector("#legend li")
        opened.press("n")
        assert opened.page.inner_text("#detail .said >> nth=0") == "safe‹U+202E›txt.exe‹U+2066›‹U+0000›x‹U+200B›y"


def test_an_empty_page_takes_a_dropped_map_and_a_chosen_one(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, None) as opened:
        page = opened.page
        page.wait_for_selector("#welcome:visible")
        assert "Drop a map here" in page.inner_text("#welcome")
        opened.drop(json.dumps(a_map(["one", "two"])))
        page.wait_for_selector("#legend li")
        assert page.inner_text("#title") == "rows.jsonl" and "2 rows" in page.inner_text("#subtitle")
        chosen = tmp_path / "other.json"
        chosen.write_text(json.dumps(a_map(["a", "b", "c"], title="other")), encoding="utf-8")
        page.set_input_files("#file", str(chosen))
        page.wait_for_selector("#title:text-is('other')")
        assert "3 rows" in page.inner_text("#subtitle") and opened.faults == []


DAMAGED = {
    "": "The file is empty",
    '{"tunesmith_map": 1, "rows": [': "not whole JSON",
    "[1, 2]": "no map",
    '{"tunesmith_map": 7}': "version 7",
    '{"tunesmith_map": 1, "rows": []}': "no rows",
    '{"tunesmith_map": 1, "rows": 4}': "rows is a number, expected a list",
    '{"tunesmith_map": 1, "rows": [{"turns": [{"role": "user", "text": 3}]}]}': "rows[0].turns[0].text is a number",
    '{"tunesmith_map": 1, "rows": [{"turns": []}], "projections": []}': "no projection",
}


def test_a_damaged_file_gets_a_message_that_names_the_fault_and_the_map_stays(browser: Any, tmp_path: Path) -> None:
    good = a_map(["one", "two"])
    damaged = dict(DAMAGED)
    short, odd, beyond = (json.loads(json.dumps(good)) for _ in range(3))
    short["projections"][0]["points"].pop()
    odd["projections"][1]["points"][4] = "x"
    beyond["groupings"][0]["of"][1] = 2
    damaged[json.dumps(short)] = "projections[0].points has 5 entries, expected 6"
    damaged[json.dumps(odd)] = "projections[1].points[4] is text, expected a number"
    damaged[json.dumps(beyond)] = "groupings[0].of[1] is 2, expected a whole number below 2"
    with Opened(browser, tmp_path, good) as opened:
        opened.page.wait_for_selector("#legend li")
        for text, message in damaged.items():
            opened.drop(text, name="bad.json")
            opened.page.locator("#wrong:not([hidden]) p", has_text=message).wait_for()
            assert opened.page.inner_text("#wrong p").startswith("bad.json: ")
            opened.page.click("#wrong button")
        assert opened.page.inner_text("#title") == "rows.jsonl" and opened.faults == []


def test_data_of_the_page_that_were_cut_are_told_of(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, None) as opened:
        whole = map_page(a_map(["one"])).decode()
        start = whole.index('id="data">') + len('id="data">')
        (tmp_path / "cut.html").write_text(
            whole[: start + 200] + whole[whole.index("</script>", start) :], encoding="utf-8"
        )
        opened.page.goto((tmp_path / "cut.html").as_uri())
        opened.page.wait_for_selector("#wrong:visible")
        assert "data in this page are damaged" in opened.page.inner_text("#wrong")


def test_search_counts_lists_and_opens_the_rows_that_hold_every_word(browser: Any, tmp_path: Path) -> None:
    texts = ["A red bicycle", "A blue bicycle", "Soup with red beets", "Nothing"]
    with Opened(browser, tmp_path, a_map(texts)) as opened:
        page = opened.page
        page.wait_for_selector("#legend li")
        page.keyboard.press("/")
        page.keyboard.type("BICYCLE red")
        page.wait_for_selector("#hits li")
        assert page.inner_text("#found") == "1 of 4 rows"
        assert page.locator("#hits mark").inner_text() == "bicycle"
        assert page.locator("#legend .number").all_inner_texts() == ["1 / 2", "0 / 2"]
        page.click("#hits button")
        assert page.inner_text("#detail h2") == "Row 1 of 4"
        page.click("#legend .group >> nth=0")
        assert page.inner_text("#found") == "1 of 4 rows, 1 in hidden groups" and page.locator("#hits li").count() == 0


@pytest.mark.parametrize("painter", PAINTERS)
def test_a_hidden_group_is_not_drawn_and_cannot_be_clicked(browser: Any, tmp_path: Path, painter: str) -> None:
    with Opened(browser, tmp_path, a_map([f"q{n}" for n in range(13)]), f"#{painter}") as opened:
        page = opened.page
        page.wait_for_selector("#legend li")
        page.click("#names")
        page.wait_for_timeout(400)
        page.click("#none")
        page.wait_for_timeout(300)
        empty = opened.square(*MIDDLE)
        page.click("#all")
        page.wait_for_timeout(300)
        assert opened.square(*MIDDLE) != empty
        page.click("#legend .group >> nth=0")
        assert page.get_attribute("#legend .group >> nth=0", "aria-pressed") == "false"
        page.wait_for_timeout(300)
        assert opened.square(*MIDDLE) == empty
        page.mouse.click(*MIDDLE)
        assert page.is_hidden("#detail")
        page.click("#all")
        page.mouse.click(*MIDDLE)
        page.wait_for_selector("#detail:visible")


def test_keys_turn_zoom_and_walk_from_row_to_row(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, a_map([f"q{n}" for n in range(13)])) as opened:
        page = opened.page
        page.wait_for_selector("#legend li")
        before = page.screenshot()
        for key in ("ArrowLeft", "ArrowUp", "+"):
            opened.press(key)
            page.wait_for_timeout(120)
            after = page.screenshot()
            assert after != before
            before = after
        opened.press("0")
        opened.press("Enter")
        assert page.inner_text("#detail h2") == "Row 1 of 13"
        opened.press("n")
        assert page.inner_text("#detail h2") == "Row 2 of 13"
        opened.press("p")
        opened.press("p")
        assert page.inner_text("#detail h2") == "Row 13 of 13"
        assert page.inner_text("#said").startswith("Row 13: q12")
        page.click("#detail .rows button >> nth=0")
        assert page.evaluate("document.activeElement.id") == "detail"
        page.keyboard.press("Escape")
        assert page.is_hidden("#detail") and page.evaluate("document.activeElement.id") == "space"


def test_the_projection_changes_with_a_movement_or_at_once_where_motion_is_unwanted(
    browser: Any, tmp_path: Path
) -> None:
    far = a_map(["a", "b", "c", "d"], points=[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0.9, 0.4]])
    for motion, expected in (("reduce", 1), ("no-preference", 2)):
        with Opened(browser, tmp_path, far, reduced_motion=motion) as opened:
            page = opened.page
            page.wait_for_selector("#legend li")
            page.click("#names")
            assert page.locator("#projections input:checked").get_attribute("value") == "1"
            page.locator("#projections input").first.check(force=True)
            page.wait_for_timeout(150)
            seen = {page.screenshot()}
            page.wait_for_timeout(1600)
            seen.add(page.screenshot())
            assert len(seen) == expected
            assert page.inner_text("#projection-note") == "widest axes"


def test_a_map_whose_umap_is_not_done_says_so_and_offers_to_reload(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, a_map(["a", "b"], pending="umap")) as opened:
        opened.page.wait_for_selector(".pending")
        assert "UMAP was still being computed" in opened.page.inner_text(".pending")
        (tmp_path / "map.html").write_bytes(map_page(a_map(["a", "b"])))
        opened.page.click(".pending button")
        opened.page.wait_for_selector("#legend li")
        opened.page.wait_for_selector(".pending", state="detached")


def test_fifty_thousand_rows_load_and_the_middle_one_can_be_clicked(browser: Any, tmp_path: Path) -> None:
    count = 50_000
    places = [
        [0, 0, 0],
        *([((n * 37) % 1000) / 500 - 1, ((n * 91) % 997) / 500 - 1, -0.9 + n / count] for n in range(1, count)),
    ]
    texts = [f"question {n} " + "words " * 40 for n in range(count)]
    data = a_map(texts, points=places)
    with Opened(browser, tmp_path, None) as opened:
        dropped = tmp_path / "big.json"
        dropped.write_text(json.dumps(data), encoding="utf-8")
        opened.page.set_input_files("#file", str(dropped))
        opened.page.wait_for_selector("#legend li", timeout=60_000)
        assert "50,000 rows" in opened.page.inner_text("#subtitle")
        opened.page.fill("#query", "question id49999")
        opened.page.wait_for_selector("#hits li", timeout=60_000)
        opened.page.click("#hits button")
        assert opened.page.inner_text("#detail h2") == "Row 50,000 of 50,000" and opened.faults == []


def test_on_a_phone_the_row_is_a_sheet_and_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path) -> None:
    options = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
    with Opened(browser, tmp_path, a_map(["word " * 300, *["x" * 500] * 12]), **options) as opened:
        page = opened.page
        page.wait_for_selector("#legend li", state="attached")
        assert page.get_attribute("#fold", "aria-expanded") == "false" and page.is_hidden("#legend")
        panel = page.locator("#side").bounding_box()
        page.touchscreen.tap(180, (640 + panel["y"] + panel["height"]) / 2)
        page.wait_for_selector("#detail:visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        box = page.locator("#detail").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] > 200


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, tmp_path, a_map(["a", "b"])) as opened:
        page = opened.page
        page.wait_for_selector("#legend li")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, canvas')].filter((node) => node.checkVisibility()
                && !(node.getAttribute('aria-label') || node.labels?.length || node.textContent.trim())).map((node) => node.id)"""
        )
        assert nameless == []
        reached = set()
        page.focus("#fold")
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.className || document.activeElement.name"
                )
            )
        assert {"query", "projection", "grouping", "group", "only quiet", "nearer", "spin", "help", "space"} <= reached


def test_the_smallest_map_of_the_docs_can_be_dropped(browser: Any, tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[3] / "docs" / "seeing-data.md"
    smallest = docs.read_text(encoding="utf-8").rsplit("```json\n", 1)[1].partition("\n```")[0]
    with Opened(browser, tmp_path, None) as opened:
        opened.drop(smallest)
        opened.page.wait_for_selector("#legend li")
        opened.press("n")
        assert opened.page.inner_text("#detail .said") == "Hello" and opened.faults == []
