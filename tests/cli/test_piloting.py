"""`tunesmith run --pilot`: rows, rates and the cost of the full order; then the full order asks for the rest."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from english_words import WORDS
from tunesmith.cli.main import app
from tunesmith.errors import RecipeError


def recipe(folder: Path, *, generate: bool = True) -> Path:
    seeds = [{"instruction": f"seed about {word}", "input": "", "output": f"{word} it is"} for word in WORDS[:4]]
    (folder / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seeds))
    answers = [
        "\n".join(json.dumps({"input": f"{a} {b} {n}", "output": f"so {b}"}) for b in WORDS[n % 7 : n % 7 + 2])
        for n, a in enumerate(WORDS)
    ]
    (folder / "script.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in answers))
    lines = ["name: desk", "base_model: smollm2-135m", "ingest: {files: seeds.jsonl}"]
    if generate:
        lines.append(
            "generate: {num_rows: 12, rows_per_request: 2, max_similarity: 0.9, "
            "teacher: {kind: scripted, script: script.jsonl, price_usd_per_mtok: [10, 20]}}"
        )
    (folder / "recipe.yaml").write_text("\n".join(lines))
    return folder / "recipe.yaml"


def test_a_pilot_shows_rows_and_the_cost_of_the_full_order(tmp_path: Path) -> None:
    path, root = recipe(tmp_path), tmp_path / "runs"
    done = CliRunner().invoke(app, ["run", str(path), "--pilot", "4", "--root", str(root)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "row 4" in done.output
    assert "row 5" not in done.output
    assert "kept" in done.output
    assert "12 rows" in done.output
    assert "still to do" in done.output
    assert "of them 0 a second try" in done.output
    run = json.loads((root / "desk-001/run.json").read_text())
    assert run["stages"] == ["ingest", "generate"]
    (ledger,) = (root / "ledgers").iterdir()
    on_file = (ledger / "answers.jsonl").read_bytes()
    done = CliRunner().invoke(app, ["run", str(path), "--until", "generate", "--root", str(root)])
    assert done.exit_code == 0, done.output
    assert (ledger / "answers.jsonl").read_bytes().startswith(on_file)
    manifests = list(root.glob("artifacts/generate-*/manifest.json"))
    assert sorted(json.loads(path.read_text())["counts"]["kept"] for path in manifests) == [4, 12]


def test_a_pilot_without_a_generate_section_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(recipe(tmp_path, generate=False)), "--pilot", "4"])
    assert isinstance(done.exception, RecipeError)
    assert "no `generate` section" in str(done.exception)
