"""A folder of saved pages becomes conversations with their model's name; every page is accounted for."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from sharegpt_pages import answer, page
from tunesmith.data.readers import read_examples
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Excluded

CODE = answer(
    '<p>Like so:</p><pre><div>python<button>Copy code</button></div><code class="language-python">x = 1\n</code></pre>'
)
PAGES = {
    "a.html": page(("human", "2 / 2How do I use <b> in `a_b`?"), ("gpt", CODE)),
    "b.html": page(("gpt", answer("<p>Hello.</p>")), ("human", "Hi"), ("gpt", answer("<p>Ho.</p>")), ("human", "Bye"), model=None),
    "c.html": page(("human", "one"), ("human", "two"), ("gpt", answer("<p>x</p>"))),
    "d.html": page(("human", "alone")),
    "e.html": "<html><body>404</body></html>",
    "f.html": '<html><script id="__NEXT_DATA__" type="application/json">{"props": {"pageProps": {}}}</script></html>',
    "g.html": '<html><script id="__NEXT_DATA__" type="application/json">{"props": </script></html>',
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages = tmp_path / "pages"
    pages.mkdir()
    for name, text in PAGES.items():
        (pages / name).write_text(text, encoding="utf-8")
    return pages


def test_a_folder_of_pages_is_read_and_every_page_is_accounted_for(folder: Path):
    first, second, *bad = read_examples(folder)
    assert isinstance(first, Conversation) and isinstance(second, Conversation)
    assert [(m.role, m.content) for m in first.messages] == [
        ("user", "How do I use <b> in `a_b`?"), ("assistant", "Like so:\n\n```python\nx = 1\n```"),
    ]  # fmt: skip
    assert (first.source, first.metadata) == (
        "a.html",
        {"title": "A talk", "views": 12, "model": "GPT-4", "row_id": "VyaZlh4"},
    )
    assert [(m.role, m.content) for m in second.messages] == [("user", "Hi"), ("assistant", "Ho.")]
    assert second.metadata["turns_cut"] == 2 and "model" not in second.metadata
    assert [(b.where, b.reason, b.field) for b in bad if isinstance(b, Excluded)] == [
        ("c.html", "bad_turns", "turn 2"),
        ("d.html", "too_short", "items"),
        ("e.html", "no_page_data", None),
        ("f.html", "no_page_data", "props.pageProps.content"),
        ("g.html", "no_page_data", "__NEXT_DATA__"),
    ]


def test_a_zip_of_pages_and_a_single_page_are_read_alike(folder: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "pages.zip", "w") as archive:
        for name, text in PAGES.items():
            archive.writestr(name, text)
    zipped = [e.id if isinstance(e, Conversation) else e.reason for e in read_examples(tmp_path / "pages.zip")]
    assert zipped == [e.id if isinstance(e, Conversation) else e.reason for e in read_examples(folder)]
    (single,) = read_examples(folder / "a.html")
    assert isinstance(single, Conversation) and single.id == zipped[0]


def test_a_single_page_without_a_conversation_is_one_clear_error(folder: Path):
    with pytest.raises(DataError, match=r"e\.html: none of the first 1 rows can be read: the page has no script tag"):
        list(read_examples(folder / "e.html"))


def test_a_dump_of_sharegpt_that_holds_html_is_cleaned_and_other_html_is_left(tmp_path: Path):
    rows = [
        {"id": "1", "conversations": [{"from": "human", "value": "<p>my tag</p>"}, {"from": "gpt", "value": answer("<p>a <b>b</b></p>")}]},
        {"id": "2", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<p>is a tag</p>"}]},
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    texts = [[m.content for m in e.messages] for e in read_examples(tmp_path / "a.json") if isinstance(e, Conversation)]
    assert texts == [["<p>my tag</p>", "a **b**"], ["x", "<p>is a tag</p>"]]
