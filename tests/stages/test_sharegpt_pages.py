"""A folder of pages to tokens, masks and text with the recipe of examples/sharegpt-pages; every page is in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.events import NullSink
from tunesmith.pipeline import execute
from tunesmith.resolve import load_recipe
from tunesmith.store import Run, Store
from tunesmith.text.jsonl import read_records
from tunesmith.types import Conversation, Excluded

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "sharegpt-pages"


def counts(run: Run, stage: str) -> dict[str, int]:
    artifact = run.artifact(stage)
    assert artifact is not None
    return artifact.manifest.counts


@pytest.mark.real
def test_pages_become_pieces_with_tokens_masks_and_text(tmp_path: Path, smollm2: object):
    run = execute(load_recipe(RECIPE), Store(tmp_path), NullSink(), until="tokenize")
    assert counts(run, "ingest") == {"rows_read": 8, "kept": 7, "rejected": 1, "train": 5, "test": 2}
    (bad,) = read_records(run.path / "ingest" / "rejects.jsonl", Excluded)
    assert (bad.where, bad.reason) == ("not-found.html", "no_page_data")
    excluded = read_records(run.path / "curate" / "excluded.jsonl", Excluded)
    reasons = {each.where: each.reason for each in excluded}
    assert set(reasons) == {"older-model.html", "blocked.html", "sort-words.html"} or set(reasons) == {
        "older-model.html", "blocked.html", "sort-words-again.html",
    }  # fmt: skip
    train = read_records(run.path / "curate" / "train.jsonl", Conversation)
    test = read_records(run.path / "curate" / "test.jsonl", Conversation)
    assert len(train) + len(test) == 4 and all(row.metadata["model"] == "GPT-4" for row in [*train, *test])
    found = counts(run, "tokenize")
    assert found["rows"] - found.get("rows_split", 0) + found.get("pieces", 0) == found["samples"] + found["dropped"]
    assert not (run.path / "train").exists()
    lengths = 0
    for split, rows in (("train", train), ("test", test)):
        pieces = [
            json.loads(line) for line in (run.path / "tokenize" / f"tokens.{split}.jsonl").read_text().splitlines()
        ]
        lengths += sum(len(piece["input_ids"]) for piece in pieces)
        assert all(len(piece["input_ids"]) == len(piece["loss_mask"]) <= 256 for piece in pieces)
        assert all(piece["loss_mask"][0] == 0 and sum(piece["loss_mask"]) > 0 for piece in pieces)
        text = "".join(piece["text"] for piece in pieces)
        assert all(message.content in text for row in rows for message in row.messages)
    assert lengths > found["tokens"] > 0


def test_a_stage_the_recipe_does_not_have_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="has no stage 'tokenise'"):
        execute(load_recipe(RECIPE), Store(tmp_path), NullSink(), until="tokenise")
