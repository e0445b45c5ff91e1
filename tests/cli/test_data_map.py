"""`tunesmith data map`: what it writes, and what it refuses to write over."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tunesmith.cli import data_map
from tunesmith.cli.main import app
from tunesmith.data.atlas import build
from tunesmith.errors import DataError, MissingExtra, RecipeError
from tunesmith.store import Identity, Store, open_run
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded, Message, Outcome


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def by_letters(texts: Sequence[str]) -> np.ndarray:
        rows = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    monkeypatch.setattr(build, "wordllama_embedder", lambda: by_letters)
    monkeypatch.setattr(build, "umap_layout", lambda coordinates, rng_seed: coordinates[:, 2::-1])


def _rows(path: Path, count: int) -> Path:
    lines = [
        json.dumps({"instruction": f"Tell {'abcdefghij'[n % 10] * (n + 1)}", "output": "kq"[n % 2] * (1 + n % 7)})
        for n in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["data", "map", *arguments])


def _carried(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_the_page_is_written_with_pca_first_and_then_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def layout(coordinates: np.ndarray, rng_seed: int) -> np.ndarray:
        seen.append(_carried(Path("map.html")))
        return coordinates[:, :3]

    monkeypatch.setattr(build, "umap_layout", layout)
    done = _run(str(_rows(tmp_path / "rows.jsonl", 30)), "--points", "map.json")
    assert done.exit_code == 0, done.output
    assert [each["name"] for each in seen[0]["projections"]] == ["pca"] and seen[0]["pending"] == "umap"
    last = _carried(Path("map.html"))
    assert [each["name"] for each in last["projections"]] == ["pca", "umap"] and "pending" not in last
    assert last == json.loads(Path("map.json").read_bytes())
    assert last["title"] == "rows.jsonl" and "30 rows placed; PCA and UMAP → map.html" in done.output


def test_an_interrupted_umap_leaves_a_page_with_pca_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "umap_layout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data_map.write_map(
            str(_rows(tmp_path / "rows.jsonl", 30)), root=None, form="auto", of="prompt", num_clusters=None, max_rows=99,
            with_umap=None, rng_seed=1, page_path=Path("map.html"), json_path=None, open_page=False,
        )  # fmt: skip
    assert "pending" not in _carried(Path("map.html"))
    assert _carried(Path("map.html"))["notes"][-1] == "UMAP was interrupted"


def test_umap_that_was_asked_for_and_is_missing_is_an_error_after_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtra("umap-learn", "map", "the UMAP of a map")

    monkeypatch.setattr(build, "umap_layout", missing)
    rows = str(_rows(tmp_path / "rows.jsonl", 30))
    quiet = _run(rows)
    assert quiet.exit_code == 0 and "tunesmith[map]" in quiet.output
    asked = _run(rows, "--umap")
    assert isinstance(asked.exception, MissingExtra) and "tunesmith[map]" in (asked.exception.hint or "")
    assert _carried(Path("map.html"))["counts"] == {"placed": 30}


def test_options_decide_what_is_placed_how_many_and_in_how_many_clusters(tmp_path: Path) -> None:
    rows = str(_rows(tmp_path / "rows.jsonl", 60))
    done = _run(rows, "--no-umap", "--of", "reply", "--clusters", "2", "--rows", "40", "--html", "sub/m.html")
    assert done.exit_code == 0, done.output
    data = _carried(Path("sub/m.html"))
    assert data["counts"] == {"placed": 40, "not_drawn": 20} and "last reply" in data["embedding"]
    assert len(data["groupings"][0]["labels"]) == 2 and len(data["projections"]) == 1
    assert _carried(Path("sub/m.html"))["rows"][0]["turns"][1]["role"] == "assistant"


def test_without_in_an_empty_page_is_written() -> None:
    done = _run("--html", "empty.html")
    assert done.exit_code == 0 and 'id="data"></script>' in Path("empty.html").read_text(encoding="utf-8")
    assert isinstance(_run("--points", "x.json").exception, RecipeError)


def test_no_file_but_an_older_map_is_written_over(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.json", 20)
    before = rows.read_bytes()
    refused = _run(str(rows), "--no-umap", "--points", str(rows))
    assert isinstance(refused.exception, RecipeError) and "no map" in str(refused.exception)
    assert rows.read_bytes() == before
    Path("mine.html").write_text("<p>mine</p>", encoding="utf-8")
    assert isinstance(_run(str(rows), "--html", "mine.html").exception, RecipeError)
    assert isinstance(_run(str(rows), "--html", str(tmp_path)).exception, RecipeError)
    for _ in range(2):
        assert _run(str(rows), "--no-umap", "--points", "map.json").exit_code == 0


def test_rows_that_cannot_be_placed_are_an_error_and_leave_no_page(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "42", "output": "7"}\n', encoding="utf-8")
    done = _run("rows.jsonl")
    assert isinstance(done.exception, DataError) and not Path("map.html").exists()


def test_a_run_is_mapped_with_its_splits_and_what_was_excluded(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.create()
    run = open_run(store, "desk", "digest")
    identity = Identity("curate", 1, {}, {})
    folder = store.partial_dir(identity)

    def row(number: int, split: Any) -> Conversation:
        messages = [Message(role="user", content="abcdefg"[number] * 4), Message(role="assistant", content="q")]
        return Conversation(messages=messages, split=split, source=f"a.jsonl:{number}")

    write_records(folder / "train.jsonl", [row(n, "train") for n in range(4)])
    write_records(folder / "test.jsonl", [row(4, "test")])
    write_records(folder / "excluded.jsonl", [Excluded(reason="pii", detail="why", conversation=row(5, "train"))])
    run.link("curate", store.commit(identity, Outcome("curated", {"rows_in": 6}, {}), 0.0))
    run.update(status="finished", created=1.0)
    done = _run("latest/curate", "--root", str(tmp_path / "runs"), "--no-umap")
    assert done.exit_code == 0, done.output
    data = _carried(Path("map.html"))
    colours = {grouping["name"]: grouping for grouping in data["groupings"]}
    assert data["title"] == "desk-001/curate" and data["counts"] == {"placed": 6}
    assert colours["split"]["labels"] == ["train", "test"] and colours["reason"]["labels"] == ["kept", "pii"]
    assert data["rows"][5]["reason"] == "pii" and data["rows"][5]["detail"] == "why"
