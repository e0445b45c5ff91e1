"""`tunesmith data stats`, `head`, `sample` and `diff` from the command line: files, runs, errors, JSON, pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.errors import DataError, RecipeError, StoreError
from tunesmith.store import Identity, Store, open_run
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded, Message, Outcome, Split

ALPACA = [{"instruction": f"Write a poem about topic {n}", "input": "", "output": "a reply " * n} for n in range(1, 9)]


def tunesmith(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def row(prompt: str, split: Split, reply: str = "fine", **fields: Any) -> Conversation:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content=reply)]
    return Conversation(messages=messages, split=split, **fields)


def make_run(root: Path, digest: str, train: list[str], test: list[str], excluded: dict[str, str]) -> None:
    """A run whose curate artifact has these prompts; excluded: prompt -> reason."""
    store = Store(root)
    store.create()
    run = open_run(store, "desk", digest)
    identity = Identity("curate", 1, {"of": digest}, {})
    folder = store.partial_dir(identity)
    write_records(folder / "train.jsonl", [row(prompt, "train", source="a.jsonl:1") for prompt in train])
    write_records(folder / "test.jsonl", [row(prompt, "test", source="a.jsonl:1") for prompt in test])
    left_out = [
        Excluded(reason=reason, detail="why", where="a.jsonl:5", conversation=row(prompt, "train"))
        for prompt, reason in excluded.items()
    ]
    write_records(folder / "excluded.jsonl", left_out)
    counts = {"rows_in": len(train) + len(test) + len(excluded), "train": len(train), "test": len(test)}
    artifact = store.commit(identity, Outcome("curated", counts, {}), 0.0)
    run.link("curate", artifact)
    run.update(status="finished", created=float(len(digest)))


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([*ALPACA, ALPACA[0], {"instruction": "", "output": "x"}]))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "d", ["one", "two", "three"], ["four"], {"five": "rouge_l", "six": "length"})
    make_run(root, "dd", ["one", "four", "five"], ["two"], {"three": "language"})
    return root


def test_stats_of_a_file_show_rows_verbs_repetitions_and_what_could_not_be_read(alpaca: Path) -> None:
    shown = tunesmith("stats", alpaca)
    assert "9 conversations · 1 left out" in shown
    assert "poem 9" in shown and "1 of 9 rows repeat an earlier row" in shown
    assert "empty_prompt" in shown and "10.0 %" in shown


@pytest.mark.parametrize("width", [50, 72, 120])
def test_no_width_of_a_terminal_costs_a_table_its_names_or_numbers(
    width: int, alpaca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = tunesmith("stats", alpaca)
    prompts, turns = (
        next(line for line in shown.splitlines() if line.strip().startswith(name)) for name in ("prompt", "turns")
    )
    assert prompts.split()[:7] == ["prompt", "chars", "26", "26", "26.0", "26", "26"]
    assert turns.split()[1] == "messages"
    verb = next(line for line in shown.splitlines() if line.strip().startswith("write"))
    assert verb.split()[1:4] == ["9", "100.0", "%"] and "poem 9" in verb
    assert ("█" in shown) == (width >= 72)
    assert max(map(len, shown.splitlines())) <= width


def test_stats_as_json_are_the_same_numbers_for_programs(alpaca: Path) -> None:
    found = json.loads(tunesmith("stats", alpaca, "--json"))
    assert (found["num_rows"], found["num_excluded"]) == (9, 1)
    assert found["verbs"][0]["verb"] == "write" and found["lengths"]["reply"]["words"]["max"] == 16


def test_stats_of_a_run_use_its_newest_curate_artifact_and_what_each_filter_took(runs: Path) -> None:
    shown = tunesmith("stats", "latest", "--root", runs)
    assert "desk-002/curate" in shown and "rows in 5  train 3  test 1" in shown
    assert "language" in shown and "20.0 %" in shown
    named = json.loads(tunesmith("stats", "desk-001/curate", "--root", runs, "--json"))
    assert [(each["reason"], each["num"]) for each in named["taken"]] == [("rouge_l", 1), ("length", 1)]
    by_folder = json.loads(tunesmith("stats", runs / "desk-001" / "curate", "--json"))
    assert by_folder["num_rows"] == named["num_rows"] == 4 and by_folder["counts"]["rows_in"] == 6


def test_a_drawn_sample_of_a_file_can_be_looked_at(alpaca: Path) -> None:
    found = json.loads(tunesmith("stats", f"{alpaca}#3", "--json"))
    assert (found["num_rows"], found["num_excluded"], found["counts"]) == (3, 1, {"not_drawn": 6})
    assert "not drawn 6" in tunesmith("stats", f"{alpaca}#3")


def test_the_page_is_written_beside_the_tables(alpaca: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert "page → " in tunesmith("stats", alpaca, "--html", page)
    assert page.read_text().startswith("<!doctype html>") and "Write a poem about topic 1" in page.read_text()


def test_a_page_that_cannot_be_written_is_an_error_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        tunesmith("stats", "no-such-file", "--html", tmp_path / "absent" / "out.html")
    with pytest.raises(RecipeError, match="this is a folder"):
        tunesmith("diff", "a", "b", "--html", tmp_path)


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("absent.json", RecipeError, "there is no such file, and no run of that name"),
        ("absent.json#5", RecipeError, "there is no such file"),
        ("desk/tokenise", StoreError, "no artifact 'tokenise'"),
        ("desk-009", RecipeError, "no run of that name"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(runs: Path, reference: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        tunesmith("stats", reference, "--root", runs)
    hint: str = caught.value.hint  # pyright: ignore
    assert "desk-001" in hint or "curate" in hint


def test_a_misspelt_file_is_named_with_the_nearest_one(alpaca: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        tunesmith("stats", alpaca.with_name("alpacca.json"))
    assert "did you mean 'alpaca.json'" in (caught.value.hint or "")


def test_an_artifact_without_rows_says_where_rows_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    identity = Identity("train", 1, {}, {})
    (store.partial_dir(identity)).mkdir(parents=True)
    (store.partial_dir(identity) / "weights.bin").write_bytes(b"x")
    artifact = store.commit(identity, Outcome("checkpoint", {}, {}), 0.0)
    with pytest.raises(StoreError, match="holds no conversations"):
        tunesmith("stats", artifact.path)


def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match=r"rows\.jsonl: the file is empty"):
        tunesmith("head", tmp_path / "rows.jsonl")


def test_head_shows_the_first_rows_and_says_what_it_cuts(alpaca: Path) -> None:
    shown = tunesmith("head", alpaca, "-n", 2, "--chars", 10)
    assert "Write a po" in shown and "… 16 more characters" in shown
    assert shown.count("assistant") == 2 and "topic 3" not in shown


def test_head_as_json_gives_whole_rows(alpaca: Path) -> None:
    rows = [
        Conversation.model_validate_json(line) for line in tunesmith("head", alpaca, "-n", 3, "--json").splitlines()
    ]
    assert [each.prompt[0].content for each in rows] == [each["instruction"] for each in ALPACA[:3]]


def test_a_sample_is_the_same_for_the_same_seed_and_in_the_order_of_the_file(alpaca: Path) -> None:
    first, again, other = (tunesmith("sample", alpaca, "-n", 4, "--seed", seed, "--json") for seed in (1, 1, 2))
    assert first == again != other
    places = [int(json.loads(line)["source"].rsplit("#", 1)[1]) for line in first.splitlines()]
    assert len(places) == 4 and places == sorted(places)


def test_rows_are_selected_by_split_and_excluded_ones_by_their_reason(runs: Path) -> None:
    tested = tunesmith("sample", "desk-001", "--root", runs, "--where", "split=test", "--json").splitlines()
    assert [json.loads(line)["messages"][0]["content"] for line in tested] == ["four"]
    left_out = tunesmith("head", "desk-001", "--root", runs, "--where", "reason=rouge*", "--json").splitlines()
    assert [json.loads(line)["conversation"]["messages"][0]["content"] for line in left_out] == ["five"]
    assert "rouge_l: why" in tunesmith("head", "desk-001", "--root", runs, "--where", "reason=rouge_l")
    assert "no row of desk-001 with source=absent" in tunesmith(
        "head", "desk-001", "--root", runs, "--where", "source=absent"
    )


def test_a_selection_that_selects_nothing_is_an_error(alpaca: Path) -> None:
    with pytest.raises(RecipeError, match="'source' selects nothing"):
        tunesmith("head", alpaca, "--where", "source")


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path: Path) -> None:
    rows = [{"instruction": "Write \x1b]0;owned\x07 [red]this[/red]", "output": "\u202efdp \x1b[2J"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for command in ("head", "stats"):
        shown = tunesmith(command, tmp_path / "rows.json")
        assert [part for part in ("\x1b]", "\x1b[2J", "\x07", "\u202e") if part in shown] == []
    assert "[red]this[/red]" in tunesmith("head", tmp_path / "rows.json")


def test_two_runs_are_compared_row_by_row(runs: Path, tmp_path: Path) -> None:
    found = json.loads(tunesmith("diff", "desk-001", "desk-002", "--root", runs, "--json"))
    assert (found["num_both"], found["before"]["num_only"], found["after"]["num_only"]) == (5, 1, 0)
    assert {(move["before"], move["after"]) for move in found["moves"]} == {
        ("train", "test"), ("test", "train"), ("train", "left out: language"), ("left out: rouge_l", "train"),
    }  # fmt: skip
    shown = tunesmith("diff", "desk-001", "desk-002", "--root", runs, "--html", tmp_path / "diff.html")
    assert "left out: rouge_l" in shown and "Only in A" in shown and "six" in shown
    assert "left out: language" in (tmp_path / "diff.html").read_text()


def test_two_files_are_compared_and_a_changed_reply_is_shown_by_word(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Say hello", "output": "Hello old friend"}]))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "Say hello", "output": "Hello new friend"}]))
    shown = tunesmith("diff", tmp_path / "a.json", tmp_path / "b.json")
    assert "Hello oldnew friend" in shown
    assert "same prompt, other reply" in shown


@pytest.mark.parametrize("command", ["stats", "head", "sample", "diff"])
def test_every_command_has_examples_in_its_help(command: str) -> None:
    assert f"tunesmith data {command}" in tunesmith(command, "--help").replace("\n", " ")
