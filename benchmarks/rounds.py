"""The frame of a comparison: options, sides that run in turn in processes of their own, and what is printed of their rounds.

A driver (`*_vs_trl.py`, `preprocessing.py`, `training_ablation.py`) writes a spec that every side reads; a side is a process that
gets the names of the spec's file and of one for its result, JSON both. What is measured, and how, only drivers and sides know.
Imports the standard library alone: a peer's script uses this in an environment that has no tunesmith.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "tunesmith"

Result = dict[str, Any]


def new_parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """With the options of every comparison."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or model folder")
    parser.add_argument(
        "--data", type=Path, nargs="+", help="rows of any format `ingest` reads; none = the support-desk seeds"
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--out", type=Path, help="JSON file for every figure")
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


def add_trl(parser: argparse.ArgumentParser, tried: dict[str, Any], *, alone: bool) -> None:
    """TRL's environment and settings; alone: whether a side may run by itself."""
    parser.add_argument("--peer-python", required=True, help="Python of an environment that has TRL")
    parser.add_argument("--trl", choices=sorted(tried), default="best", help="which of TRL's settings")
    if alone:
        parser.add_argument("--only", choices=(OURS, "trl"), help="one side alone, to compare settings of it")
    add_threads(parser)


def run(
    parser: argparse.ArgumentParser,
    compare: Callable[[argparse.Namespace, Path], Result],
    print_report: Callable[[Result], None],
    ours: Callable[[Result], Result],
) -> None:
    """A driver: parse, compare in a folder of its own, print, keep. In the process that stands for our side: `ours`."""
    if sys.argv[1:2] == ["--worker"]:
        return work(ours)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = compare(args, Path(folder))
    print_report(report)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


def work(side: Callable[[Result], Result]) -> None:
    """A side: from the spec to the result. They are the last two words of the command line."""
    spec_path, result_path = sys.argv[-2:]
    result = side(json.loads(Path(spec_path).read_text()))
    result.setdefault("peak_memory_bytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    Path(result_path).write_text(json.dumps(result))


def measure(
    args: argparse.Namespace,
    folder: Path,
    spec: Result,
    *,
    script: str,
    peers: dict[str, list[str]],
    tell: Callable[[Result], str],
    watch_tree: bool = False,
) -> list[Result]:
    """Results by side of every round.

    script: the driver, whose `--worker` is our side. peers: the commands of the others, to which the two files are added. tell:
    gets a round's results, which it may check and add to, and answers what is printed of it.
    """
    commands = {OURS: [sys.executable, script, "--worker"], **peers}
    if only := getattr(args, "only", None):
        commands = {only: commands[only]}
    spec_path = folder / "spec.json"
    spec_path.write_text(json.dumps(spec))
    rounds: list[Result] = []
    for number, names in orders(list(commands), args.rounds):
        measured: Result = {}
        for name in names:
            command = [*commands[name], str(spec_path)]
            measured[name] = run_side(command, folder / f"{name}.json", spec.get("threads"), watch_tree=watch_tree)
        rounds.append(measured)
        print(f"round {number}: {tell(measured)}", flush=True)
    return rounds


def orders(names: Sequence[str], num_rounds: int) -> Iterator[tuple[int, Sequence[str]]]:
    """The number of each round, from 1, and its order: backwards every other round."""
    for number in range(num_rounds):
        yield number + 1, names if number % 2 == 0 else names[::-1]


def run_side(command: list[str], result: Path, threads: int | None = None, *, watch_tree: bool = False) -> Result:
    """One process; what it writes is shown only where it fails.

    watch_tree: its memory is that of itself and all below it, looked at four times a second from outside.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment.update(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
    errors, peak = result.with_suffix(".err"), 0
    with errors.open("w") as stream:
        process = subprocess.Popen([*command, str(result)], env=environment, stdout=subprocess.DEVNULL, stderr=stream)
        while watch_tree and process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.25)
        if process.wait():
            sys.exit(f"{' '.join(command)} failed:\n{errors.read_text()[-3000:]}")
    found = json.loads(result.read_text())
    return {**found, "peak_memory_bytes": peak} if watch_tree else found


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and all below it: a page that several hold is divided among them."""
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for each in family:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def median_of(runs: list[Result], value: str | Callable[[Result], float]) -> float:
    """Of a value of each run, or of what is computed of each."""
    return statistics.median(run[value] if isinstance(value, str) else value(run) for run in runs)


def peak_gigabytes(runs: list[Result]) -> float:
    return median_of(runs, "peak_memory_bytes") / 1e9


def spread(ratios: Sequence[float]) -> str:
    return f"median {statistics.median(ratios):.2f}x (from {min(ratios):.2f} to {max(ratios):.2f})"


def print_losses(measured: Result, note: str = "", digits: int = 4) -> None:
    """Both sides' curves of a round, side by side."""
    print(f"\nloss by step (tunesmith | trl){note}")
    curves = [[f"{step['loss']:.{digits}f}" for step in measured[name]["steps"]] for name in (OURS, "trl")]
    for index in range(max(map(len, curves))):
        ours, theirs = (curve[index] if index < len(curve) else "" for curve in curves)
        print(f"{index + 1:5} {ours:>{digits + 4}} | {theirs:>{digits + 4}}")
