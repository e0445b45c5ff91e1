"""How a command ends: interrupted, without a package, in a crash on a full disk, with text that line readers split."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.cli import main as cli
from tunesmith.cli import showing
from tunesmith.cli.listing import run_doctor

RECIPE = """name: desk
base_model: smollm2-135m
ingest: {files: seeds.jsonl}
generate:
  teacher: {base_url: "http://127.0.0.1:%d/v1", api_key_env: null, price_usd_per_mtok: [0, 0]}
"""


def test_an_interrupt_says_so_and_ends_with_130(tmp_path: Path) -> None:
    """A teacher that accepts and never answers keeps the run busy until Ctrl-C comes."""
    rows = [{"question": f"What is number {i}?", "response": f"It is {i}."} for i in range(6)]
    (tmp_path / "seeds.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "recipe.yaml").write_text(RECIPE % silent.getsockname()[1])
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith.cli.main", "run", "."],
            cwd=tmp_path,
            env={**os.environ, "TUNESMITH_ROOT": str(tmp_path / "runs")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        silent.settimeout(60)
        connection, _ = silent.accept()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 130
    assert "interrupted" in errors and "the same command continues" in errors and "Traceback" not in errors
    assert json.loads((tmp_path / "runs" / "desk-001" / "run.json").read_text())["status"] == "interrupted"


def _end(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _end(monkeypatch, ModuleNotFoundError("No module named 'gguf'", name="gguf.quants")) == 1
    said = capsys.readouterr().err
    assert "'gguf.quants'" in said and "tunesmith[train]" in said and "fault" not in said


def test_a_crash_where_nothing_can_be_written_shows_its_details(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tunesmith-crash.txt").mkdir()  # what a full or read-only folder does: writing fails
    monkeypatch.delenv("TUNESMITH_DEBUG", raising=False)
    assert _end(monkeypatch, RuntimeError("boom")) == 1
    said = capsys.readouterr().err
    assert "fault of tunesmith: RuntimeError: boom" in said and "details are above" in said


def test_a_line_of_json_ends_at_a_newline_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": "x\u2028y\u0085z"}\n{"a": 2}\n', encoding="utf-8")
    assert [json.loads(line) for line in showing._lines(tmp_path / "rows")] == [{"a": "x\u2028y\u0085z"}, {"a": 2}]


def test_doctor_names_the_extra_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import PackageNotFoundError

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("tunesmith.cli.listing.version", absent)
    run_doctor()
    shown = capsys.readouterr().out
    assert "pip install 'tunesmith[train]'" in shown and "pip install 'tunesmith[serve]'" in shown
