"""From examples to documents: first with PCA, then with UMAP, every row counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tunesmith.data.atlas import build
from tunesmith.data.atlas.build import build_map
from tunesmith.errors import DataError, MissingExtra
from tunesmith.types import Conversation, Example, Excluded, Message

OPTIONS: dict[str, Any] = {"title": "t", "max_rows": 1000, "of": "conversation", "num_clusters": None, "rng_seed": 1}


def _by_letters(texts: Sequence[str]) -> np.ndarray:
    """Vectors of length 1 by the letters of a text; zeros where it has none."""
    rows = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _row(number: int, text: str = "") -> Conversation:
    words = text or f"{'abcdefghij'[number % 10] * (number + 1)} {'xyz'[number % 3]}"
    return Conversation(
        messages=[Message(role="user", content=words), Message(role="assistant", content="ok")], source=f"f:{number}"
    )


def _build(examples: Sequence[Example | Excluded], sink, **changes: Any) -> list[dict[str, Any]]:
    documents = build_map(examples, **{**OPTIONS, "events": sink, "embed": _by_letters, "with_umap": False, **changes})
    return [dict(vars(each)) | {"projections": list(each.projections)} for each in documents]


def test_without_umap_there_is_one_document_with_pca(sink) -> None:
    (document,) = _build([_row(n) for n in range(20)], sink)
    assert [each.name for each in document["projections"]] == ["pca"]
    assert document["counts"] == {"placed": 20} and document["pending"] is None
    assert document["groupings"][0].name == "cluster"


def test_umap_follows_the_document_that_names_it_pending(sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "umap_layout", lambda coordinates, rng_seed: coordinates[:, :3] * rng_seed)
    first, second = _build([_row(n) for n in range(20)], sink, with_umap=None)
    assert (first["pending"], len(first["projections"])) == ("umap", 1)
    assert second["pending"] is None and [each.name for each in second["projections"]] == ["pca", "umap"]


def test_without_umap_learn_the_map_has_its_pca_and_says_what_to_install(sink, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingExtra("umap-learn", "map", "the UMAP of a map")

    monkeypatch.setattr(build, "umap_layout", missing)
    documents = _build([_row(n) for n in range(20)], sink, with_umap=None)
    assert documents[-1]["pending"] is None and "tunesmith[map]" in documents[-1]["notes"][0]
    assert any("PCA alone" in getattr(event, "message", "") for event in sink.events)
    with pytest.raises(MissingExtra):
        _build([_row(n) for n in range(20)], sink, with_umap=True)


def test_every_row_is_placed_or_counted(sink) -> None:
    rows: list[Example | Excluded] = [_row(n) for n in range(30)]
    rows += [Excluded(reason="bad_row", where="f:9"), Conversation(messages=[Message(role="user", content="42")])]
    (document,) = _build(rows, sink, max_rows=1000)
    assert document["counts"] == {"placed": 30, "no_text": 1, "no_known_word": 1}
    (document,) = _build(rows, sink, max_rows=20)
    assert sum(document["counts"].values()) == 32 and document["counts"]["not_drawn"] == 12
    (document,) = _build(rows, sink, of="reply")
    assert document["counts"] == {"placed": 30, "no_reply": 2}


def test_the_same_rows_are_drawn_every_time_and_stay_in_their_order(sink) -> None:
    rows = [_row(n) for n in range(300)]
    drawn = [[row.source for row in _build(rows, sink, max_rows=40)[0]["rows"]] for _ in range(2)]
    assert drawn[0] == drawn[1] == sorted(drawn[0], key=lambda source: int(source[2:]))
    assert drawn[0] != [row.source for row in _build(rows, sink, max_rows=40, rng_seed=2)[0]["rows"]]


def test_excluded_rows_are_placed_with_their_reason(sink) -> None:
    rows = [_row(0), _row(1), Excluded(reason="pii", detail="a phone number", where="f:2", conversation=_row(2))]
    (document,) = _build(rows, sink)
    assert [row.reason for row in document["rows"]] == [None, None, "pii"]
    assert "reason" in [grouping.name for grouping in document["groupings"]]


def test_few_rows_have_a_map_and_are_told_why_there_is_no_umap(sink) -> None:
    for count in (1, 2, 3):
        (document,) = _build([_row(n) for n in range(count)], sink, with_umap=None)
        assert document["counts"] == {"placed": count} and "at least 12 rows" in document["notes"][0]


def test_rows_without_any_text_are_an_error_that_says_what_to_do(sink) -> None:
    with pytest.raises(DataError) as caught:
        _build([Conversation(messages=[Message(role="user", content="Hi")])], sink, of="reply")
    assert "last reply" in str(caught.value) and "--of prompt" in (caught.value.hint or "")
