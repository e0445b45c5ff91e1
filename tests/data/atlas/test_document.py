"""The JSON of a map and the page that carries it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re

import numpy as np

from tunesmith.data.atlas.document import MapDocument, Projection, as_json, encoded, fitted, turn_limit
from tunesmith.data.atlas.groupings import Grouping
from tunesmith.data.atlas.page import map_page
from tunesmith.data.atlas.rows import MapRow, Turn


def _document(*texts: str, title: str = "t") -> MapDocument:
    rows = [MapRow(row_id=str(n), source=f"a:{n}", turns=(Turn("user", text),)) for n, text in enumerate(texts)]
    points = np.arange(3 * len(rows), dtype=np.float32).reshape(-1, 3)
    grouping = Grouping("cluster", "Cluster", ["all"], [0] * len(rows))
    projections = [Projection("pca", "PCA", "", fitted(points))]
    return MapDocument(title, "vectors", rows, [grouping], projections, {"placed": len(rows)})


def _data_of(page: str) -> str:
    found = re.search(r'<script type="text/plain" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return found[1]


def test_the_json_has_three_numbers_a_row_and_leaves_out_what_is_not_known() -> None:
    value = as_json(_document("one", "two"))
    assert value["tunesmith_map"] == 1 and value["counts"] == {"placed": 2}
    assert len(value["projections"][0]["points"]) == 6
    assert value["rows"][1] == {"id": "1", "source": "a:1", "turns": [{"role": "user", "text": "two"}]}


def test_points_are_moved_and_scaled_into_the_unit_ball() -> None:
    points = fitted(np.array([[10.0, 0, 0], [30, 0, 0], [20, 5, 0]]))
    assert np.linalg.norm(points, axis=1).max() == 1
    assert np.allclose(points[0], -points[1] * [1, -1, 1])
    assert not fitted(np.ones((2, 3))).any()


def test_long_texts_are_cut_alike_and_short_ones_not_at_all() -> None:
    assert turn_limit([10, 20, 1000, 2000], 230) == 100
    assert turn_limit([10, 20], 230) == 20
    assert turn_limit([], 230) == 0
    lengths = [5, 70, 300, 4]
    limit = turn_limit(lengths, 150)
    assert sum(min(limit, length) for length in lengths) <= 150


def test_a_cut_text_says_how_much_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr("tunesmith.data.atlas.document._TEXT_BUDGET", 12)
    turns = [row["turns"][0] for row in as_json(_document("short", "a" * 40))["rows"]]
    assert turns == [{"role": "user", "text": "short"}, {"role": "user", "text": "a" * 7, "omitted": 33}]


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert json.loads(encoded(as_json(_document("a\ud800b"))))["rows"][0]["turns"][0]["text"] == "a?b"


def test_the_page_carries_the_json_and_no_text_of_a_row_is_markup_in_it() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    document = _document(hostile, title=f"{hostile}{{{{script}}}}")
    page = map_page(as_json(document)).decode()
    assert hostile not in page
    assert json.loads(gzip.decompress(base64.b64decode(_data_of(page)))) == as_json(document)
    assert page.count("<script") == 2


def test_the_policy_allows_the_one_script_and_the_one_style_alone() -> None:
    page = map_page(None).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script, style = (
        re.search(r"<script>(.*)</script>", page, re.DOTALL),
        re.search(r"<style>(.*)</style>", page, re.DOTALL),
    )
    assert policy and script and style
    for kind, text in (("script", script[1]), ("style", style[1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';") and "unsafe" not in policy[1]


def test_the_page_is_one_file_that_names_no_other() -> None:
    page = map_page(None).decode()
    assert _data_of(page) == ""
    assert not re.search(r"^\s*(import|export)\b", page, re.MULTILINE)
    assert not re.search(
        r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|\beval\(", page
    )
