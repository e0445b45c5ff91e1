"""Ingest and curate of millions of rows on one machine: time, memory, disk, and what became of the planted duplicates.

    python benchmarks/many_rows.py --rows 10_000_000 --folder /data/many

Memory is that of the process and its workers together (private pages: Pss), sampled twice a second. Disk is what the run
folder takes at most, sampled with it; the file of rows is apart. Exact copies and near copies (benchmarks/planted_rows.py)
are looked for by the recipe printed below; rows and verdicts are then compared with what was planted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from planted_rows import write_rows
from rounds import tree_bytes

RECIPE = """name: many
base_model: smollm2-135m
ingest:
  files: [rows.jsonl]
curate:
  max_similarity: 1
  filters: [minhash]
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--folder", type=Path, required=True, help="Rows, recipe and runs lie here.")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = options.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    if not rows.exists():
        write_rows(given.rows, rows)
    (folder / "recipe.yaml").write_text(RECIPE)
    print(RECIPE)
    for stage in ("ingest", "curate"):
        measure(stage, folder, given.set)
    compare(folder)


def measure(stage: str, folder: Path, overrides: list[str]) -> None:
    """Run up to a stage and print what it took."""
    words = [word for each in overrides for word in ("--set", each)]
    code = "import sys; sys.argv[0] = 'tunesmith'; from tunesmith.cli.main import main; main()"
    command = [sys.executable, "-c", code, "run", str(folder), "--until", stage, "--root", str(folder / "runs"), *words]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=(folder / f"{stage}.log").open("w"), stderr=subprocess.STDOUT)
    memory = disk = 0
    while process.poll() is None:
        memory = max(memory, tree_bytes(process.pid))
        disk = max(disk, sum(entry.stat().st_size for entry in walk(folder / "runs")))
        time.sleep(0.5)
    seconds = time.monotonic() - started
    assert process.returncode == 0, (folder / f"{stage}.log").read_text()[-2000:]
    manifest = next((folder / "runs" / "artifacts").glob(f"{stage}-*/manifest.json"))
    counts = json.loads(manifest.read_text())["counts"]
    num_rows = counts.get("rows_read", counts.get("rows_in", 0))
    print(
        f"{stage:<8} {seconds:8,.0f} s  {num_rows / seconds:8,.0f} rows/s  {memory / 1e9:5.2f} GB memory  "
        f"{disk / 1e9:5.1f} GB disk  {counts}",
        flush=True,
    )


def walk(folder: Path) -> list[Path]:
    return [entry for entry in folder.rglob("*") if entry.is_file() and not entry.is_symlink()]


def compare(folder: Path) -> None:
    """How many of the planted copies were found, and how many other rows were taken for copies."""
    found: Counter[tuple[str, str]] = Counter()
    (artifact,) = (folder / "runs" / "artifacts").glob("curate-*")
    for name in ("train.jsonl", "excluded.jsonl"):
        with (artifact / name).open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                found[(row.get("conversation") or row)["metadata"]["planted"], row.get("reason", "kept")] += 1
    for (kind, fate), number in sorted(found.items()):
        print(f"planted {kind:<5} {fate:<12} {number:>12,}")


if __name__ == "__main__":
    main()
