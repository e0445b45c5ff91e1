"""Memory of the reader: a file of long rows, read to its end in one process, beside a hundredth of it.

    python benchmarks/long_rows.py --gigabytes 10 --folder DIR

Writes alpaca rows of 4 to 6 KB, runs `tunesmith data sample` over them, prints wall and CPU seconds and the peak resident
memory of each run and their ratios, and deletes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gigabytes", type=float, default=1.0)
    options.add_argument("--folder", type=Path, required=True)
    given = options.parse_args()
    tunesmith = Path(sys.executable).with_name("tunesmith")
    given.folder.mkdir(parents=True, exist_ok=True)
    figures: list[tuple[float, float, float]] = []
    for share in (0.01, 1.0):
        path = given.folder / "rows.jsonl"
        try:
            num_rows, size_bytes = write(path, int(given.gigabytes * share * 1e9))
            wall, cpu, peak = measure([str(tunesmith), "data", "sample", str(path), "-n", "5"])
        finally:
            path.unlink(missing_ok=True)
        figures.append((wall, cpu, peak))
        print(f"{size_bytes / 1e6:,.0f} MB, {num_rows:,} rows: {wall:.1f} s, CPU {cpu:.1f} s, peak {peak:.1f} MiB")
    print("ratios: " + ", ".join(f"{b / a:.2f}" for a, b in zip(*figures, strict=True)) + " (seconds, CPU, memory)")


def write(path: Path, size_bytes: int) -> tuple[int, int]:
    """(rows, bytes) written: words drawn with a seed, a number of its own in each row."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(4000)]
    replies = [" ".join(rng.choices(words, k=rng.randint(610, 920))) for _ in range(4000)]
    number = size = 0
    with path.open("w", encoding="utf-8", buffering=1 << 22) as stream:
        while size < size_bytes:
            row = {"instruction": f"Question {number}: what follows?", "input": "", "output": rng.choice(replies)}
            size += stream.write(json.dumps(row) + "\n")
            number += 1
    return number, size


def measure(command: list[str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak resident MiB) of a program; its output is thrown away."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
