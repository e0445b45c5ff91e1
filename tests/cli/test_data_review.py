"""`tunesmith data review`: rows kept, edited and rejected by hand, through a pipe as through a terminal."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from tunesmith.cli.main import app
from tunesmith.data.review import MARK, Decision, load_decisions
from tunesmith.errors import StoreError
from tunesmith.store import Identity, Store, open_run
from tunesmith.text.jsonl import write_records
from tunesmith.types import Conversation, Excluded, Message, Outcome, Task
from waiting import wait_until

QUIT = "q\n"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rows in a file; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"ask {n}", "output": f"say {n}"}) + "\n" for n in range(3)))
    return path


def review(*arguments: str, keys: str = "") -> str:
    result = CliRunner().invoke(app, ["data", "review", *arguments], input=keys, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


def editor(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An editor that runs Python over the text: `text` in, `text` out; `turn` counts how often it was opened."""
    path = folder / "editor.py"
    count = folder / "opened"
    path.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"count = pathlib.Path({str(count)!r})\n"
        "turn = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (turn + 1))\n"
        "file = pathlib.Path(sys.argv[1]); text = file.read_text()\n"
        f"{script}\n"
        "file.write_text(text)\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(path))


def decided(path: str = "review.jsonl") -> list[tuple[str, str, str]]:
    return [(each.verdict, each.messages[0].content, each.reason) for each in load_decisions(Path(path))]


def test_rows_are_kept_rejected_and_skipped_with_a_counter(rows: Path):
    shown = review(str(rows), "--by", "ann", keys="k\nr\ntoo short\ns\n")
    assert "1 of 3 (0%)" in shown and "3 of 3 (67%)" in shown and "ask 0" in shown and "say 2" in shown
    assert "1 kept, 1 rejected; 1 row left → review.jsonl" in shown
    assert "curate.review: review.jsonl" in shown
    assert decided() == [("keep", "ask 0", ""), ("reject", "ask 1", "too short")]
    first = load_decisions(Path("review.jsonl"))[0]
    assert (first.by, first.source, first.when[:2]) == ("ann", "rows.jsonl:1", "20")


def test_only_undecided_rows_are_shown_the_next_time(rows: Path):
    review(str(rows), keys="k\nq\n")
    shown = review(str(rows), keys="r wrong\nk\n")
    assert "ask 0" not in shown and "1 of 2" in shown
    assert decided() == [("keep", "ask 0", ""), ("reject", "ask 1", "wrong"), ("keep", "ask 2", "")]
    assert "no undecided conversation" in review(str(rows))
    assert "decided: rejected: wrong" in review(str(rows), "--all", keys="s\ns\ns\n")


def test_a_decision_can_be_looked_at_again_changed_and_taken_back(rows: Path):
    shown = review(str(rows), keys="k\nb\nb\nr\nno\nb\nu\nu\nq\n")
    assert "this is the first row" in shown and "decided: kept" in shown and "decided: rejected: no" in shown
    assert "there is no decision to take back" in shown
    assert [verdict for verdict, *_ in decided()] == ["keep", "reject", "undecided"]
    assert "1 of 3" in review(str(rows), keys=QUIT)


def test_an_edit_is_written_and_what_is_wrong_is_said_and_opened_again(rows: Path, monkeypatch: pytest.MonkeyPatch):
    script = "text = text.replace('say 0', '') if turn == 0 else text + 'better\\n'"
    editor(rows.parent, monkeypatch, script)
    shown = review(str(rows), keys="e\ne\nq\n")
    assert "this cannot be taken: turn 2 (assistant) is empty" in shown
    (decision,) = load_decisions(Path("review.jsonl"))
    assert decision.edited is not None and decision.edited[1].content == "\nbetter"
    assert decision.messages[1].content == "say 0"
    assert "1 edited" in shown
    assert "better" in review(str(rows), "--all", keys=QUIT)


def test_an_edit_that_changes_nothing_or_is_given_up_decides_nothing(rows: Path, monkeypatch: pytest.MonkeyPatch):
    editor(rows.parent, monkeypatch, "text = text if turn == 0 else ''")
    shown = review(str(rows), keys="e\ne\ng\nq\n")
    assert "nothing was changed" in shown and "there is no turn left" in shown
    assert decided() == []


def test_a_missing_editor_and_one_that_fails_are_said(rows: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "no-such-editor -w")
    assert "there is no editor 'no-such-editor' here" in " ".join(review(str(rows), keys="e\nq\n").split())
    editor(rows.parent, monkeypatch, "sys.exit(3)")
    assert "ended with 3" in " ".join(review(str(rows), keys="e\nq\n").split())
    assert decided() == []


def test_a_new_reply_to_a_reviewed_prompt_is_shown_as_such(rows: Path, tmp_path: Path):
    review(str(rows), keys="r\nlies\nq\n")
    (tmp_path / "new.jsonl").write_text(json.dumps({"instruction": "ask 0", "output": "say anew"}) + "\n")
    shown = review("new.jsonl", keys="k\n")
    assert "reviewed before with another reply (rejected: lies): say 0" in " ".join(shown.split())
    assert "0 undecided" not in review("new.jsonl", "--list")


def test_sources_are_chosen_and_rows_drawn(rows: Path, tmp_path: Path):
    shown = review(str(rows), "-n", "2", keys="s\ns\n")
    assert "2 of 2" in shown
    assert "no undecided conversation in" in review(str(rows), "--source", "other*")
    assert "1 of 3" in review(str(rows), "--source", "rows*", keys=QUIT)


def test_an_unknown_key_and_the_end_of_the_pipe_lose_nothing(rows: Path):
    shown = review(str(rows), keys="x\nk\n")
    assert "'x' is no key here" in shown and "1 kept; 2 rows left" in shown


def test_the_list_says_how_decisions_meet_the_rows(rows: Path, tmp_path: Path):
    review(str(rows), keys="k\nr\nbad\nk\n")
    listed = review("--list")
    assert "3 decisions: 2 kept, 0 edited, 1 rejected" in listed and "ask 1  bad" in listed
    (tmp_path / "new.jsonl").write_text(
        '{"instruction": "ask 0", "output": "say 0"}\n{"instruction": "ask 1", "output": "other"}\n'
    )
    listed = review("new.jsonl", "--list")
    assert "2 rows: 1 decided, 1 reviewed with another reply" in listed
    assert "decisions here: kept 1, stale 1, no row 1" in listed


def test_rows_that_are_no_conversations_are_counted(rows: Path, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    result = CliRunner().invoke(app, ["data", "review", "p.jsonl"])
    assert "not shown: 1 of kind Preference" in result.output


def test_one_person_at_a_time_writes_to_an_overlay(rows: Path):
    with FileLock(".review.jsonl.lock"), pytest.raises(StoreError, match="somebody reviews into this file already"):
        review(str(rows), keys="k\n")


def test_rows_of_a_run_are_reviewed_without_the_recipes_system_prompt(rows: Path, tmp_path: Path):
    store = Store(tmp_path / "runs")
    store.create()
    run = open_run(store, "desk", "0")
    identity = Identity("curate", 2, {}, {})
    folder = store.partial_dir(identity)
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="ask 0")]
    left = Conversation(messages=[turns[1], Message(role="assistant", content="left out")])
    write_records(folder / "train.jsonl", [Conversation(messages=[*turns, Message(role="assistant", content="say 0")])])
    write_records(folder / "test.jsonl", [])
    write_records(folder / "excluded.jsonl", [Excluded(reason="refusal", conversation=left)])
    write_records(folder / "task.json", [Task(system_prompt="Be brief.")])
    run.link("curate", store.commit(identity, Outcome("curated", {}, {}), 0.0))
    shown = review("latest", "--root", str(tmp_path / "runs"), keys="k\n")
    assert "Be brief." not in shown and "1 of 1" in shown
    # The same row, as it stands in the file before any recipe put a prompt in front, is decided.
    assert "1 of 2" in review(str(rows), keys=QUIT)
    shown = review("desk/curate", "--where", "reason=refusal", "--root", str(tmp_path / "runs"), keys="k\n")
    assert "left out" in shown and decided()[-1] == ("keep", "ask 0", "")


def test_a_kept_row_that_curate_masked_is_not_asked_about_again(rows: Path):
    review(str(rows), keys="k\nq\n")
    masked = {"instruction": "ask 0", "output": "say [PHONE]", "metadata": {MARK: "keep"}}
    Path("masked.jsonl").write_text(json.dumps(masked) + "\n")
    assert "no undecided conversation" in review("masked.jsonl")
    Path("new.jsonl").write_text(json.dumps({**masked, "metadata": {}}) + "\n")
    assert "1 of 1" in review("new.jsonl", keys=QUIT)


def test_an_overlay_that_is_a_folder_or_not_there_is_said(rows: Path):
    with pytest.raises(StoreError, match="this is a folder"):
        review(str(rows), "--overlay", str(rows.parent), keys=QUIT)
    with pytest.raises(StoreError, match="this is a folder"):
        review("--list", "--overlay", str(rows.parent))
    with pytest.raises(StoreError, match="there are no decisions"):
        review("--list", "--overlay", "none.jsonl")


def test_a_killed_review_loses_no_decision(rows: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "data", "review", str(rows)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(b"k\nr bad\n")
    process.stdin.flush()
    overlay = Path("review.jsonl")
    wait_until(lambda: overlay.exists() and overlay.read_bytes().count(b"\n") == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert decided() == [("keep", "ask 0", ""), ("reject", "ask 1", "bad")]
    overlay.write_bytes(overlay.read_bytes() + b'{"verdict":"ke')  # killed in the middle of a line
    assert "1 of 1" in review(str(rows), keys="k\n")
    assert [verdict for verdict, *_ in decided()] == ["keep", "reject", "keep"]
    assert Decision.model_validate_json(overlay.read_bytes().splitlines()[-1]).messages[0].content == "ask 2"
