"""Do rows that a local teacher writes help the support desk? One run per arm, the same training settings, the same 88
held-out rows.

    python benchmarks/support_desk_ablation.py --root FOLDER [--rows 128] [--teachers smollm2-135m qwen2.5-coder-1.5b]

Arms: the hand-written rows alone; the same with as many steps as the arms with more rows have; and one per teacher.
Finished stages are found again in FOLDER, so a stopped ablation goes on where it was. Prints two Markdown tables: the
scores with standard errors, and what the teacher did. About 7 minutes an arm on two free cores, and 10 for the rows of
the 1.5B teacher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.generating.pilot import pace_of

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "support-desk"
NUM_SEEDS = 272
NUM_EPOCHS = 3  # of the recipe
SCORES = ("json_valid", "schema_valid", "field.intent", "field.urgency", "field.order", "loss")


@dataclass(frozen=True)
class Arm:
    """One run: its recipe, and what is changed in it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, required=True, help="where the runs are kept")
    options.add_argument("--rows", type=int, default=128, help="rows each teacher has to get through the gate")
    options.add_argument("--teachers", nargs="*", default=["smollm2-135m", "qwen2.5-coder-1.5b"])
    options.add_argument("--threads", type=int, help="cores to use; all that are free unless given")
    chosen = options.parse_args()
    arms = arms_of(chosen.rows, chosen.teachers)
    runs = [(arm, run(arm, chosen.root, chosen.threads)) for arm in arms]
    print("\n| arm | rows | steps | " + " | ".join(SCORES) + " |\n|" + "---|" * (3 + len(SCORES)))
    for arm, folder in runs:
        print(score_line(arm, folder))
    print("\n| teacher | rows kept | of | rejected | tokens/s | minutes |\n|" + "---|" * 6)
    for _arm, folder in runs:
        if (folder / "generate").is_dir():
            print(teacher_line(folder / "generate"))


def arms_of(rows: int, teachers: Sequence[str]) -> list[Arm]:
    """The arms in the order in which they are run."""
    longer = NUM_EPOCHS * (NUM_SEEDS + rows) / NUM_SEEDS
    return [
        Arm("no generated rows", "recipe.yaml"),
        *(
            Arm(f"{rows} rows by {name}", "recipe-more.yaml", (f"generate.teacher.model={name}", f"generate.num_rows={rows}"))
            for name in teachers
        ),
        Arm("no generated rows, as many steps", "recipe.yaml", (f"train.num_epochs={longer:.3f}",)),
    ]  # fmt: skip


def run(arm: Arm, root: Path, threads: int | None) -> Path:
    """Run an arm up to its scores; its run folder."""
    name = f"ablation-{'-'.join(arm.name.replace(',', '').split())}"
    sets = [f"name={name}", *arm.overrides, *([f"runtime.num_threads={threads}"] if threads else [])]
    command = [sys.executable, "-m", "tunesmith.cli.main", "run", str(EXAMPLE / arm.recipe), "--until", "evaluate"]
    command += ["--root", str(root), *(part for one in sets for part in ("--set", one))]
    print(f"## {arm.name}\n   {' '.join(command)}", flush=True)
    subprocess.run(command, check=True)
    return max(root.glob(f"{name}-[0-9]*"), key=lambda folder: folder.name)


def score_line(arm: Arm, folder: Path) -> str:
    """One row of the table of scores."""
    tuned = json.loads((folder / "evaluate" / "scores.json").read_text())["tuned"]
    counts = manifest_of(folder / "train")["counts"]
    cells = [arm.name, str(counts["samples"]), str(counts["steps"])]
    for name in SCORES:
        mean, error = tuned[name]["mean"], tuned[name]["stderr"]
        cells.append(f"{mean:.3f} ± {error:.3f}" if name == "loss" else f"{mean:.1%} ± {100 * error:.1f}")
    return f"| {' | '.join(cells)} |"


def teacher_line(folder: Path) -> str:
    """One row of the table of teachers."""
    manifest = manifest_of(folder)
    counts, facts = manifest["counts"], manifest["facts"]
    rejected = ", ".join(f"{k.removeprefix('rejected_')} {v}" for k, v in counts.items() if k.startswith("rejected_"))
    pace = pace_of(folder)
    speed = minutes = "not timed"
    if pace is not None:
        seconds = facts["num_requests"] * pace[0] / pace[1]
        speed, minutes = f"{facts['completion_tokens'] / seconds:.1f}", f"{seconds / 60:.1f}"
    cells = [facts["teacher"], str(counts["kept"]), str(counts["rows_parsed"]), rejected or "none", speed, minutes]
    return f"| {' | '.join(cells)} |"


def manifest_of(folder: Path) -> dict[str, Any]:
    """An artifact's manifest."""
    return json.loads((folder / "manifest.json").read_text())


if __name__ == "__main__":
    main()
