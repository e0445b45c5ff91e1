"""What alignment adds to the supervised model of the support desk, on the same held-out rows.

    python benchmarks/support_desk_alignment.py --root FOLDER [--recipes recipe-dpo.yaml ...] [--threads 1]
    python benchmarks/support_desk_alignment.py --root FOLDER --finished SFT_RUN DPO_RUN GRPO_RUN [--sampled 4]

The first form runs recipe.yaml and the others up to their scores: they share the stages up to train, so the supervised model is
trained once and every arm starts at it. They are scored on the 352 rows of held-out.jsonl (--test names another file).
Finished stages are found again in FOLDER. The second form reads runs that are there. Prints two Markdown tables: the scores,
and each arm minus the first run, row by row: every row is answered before and after, so the error is that of a mean of
differences, which is smaller than that of two independent means. With --sampled N the right fields of N answers drawn at temperature 1
stand in a last column (sampled_fields.py).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sampled_fields import sampled_fields
from tunesmith.judging.run_comparison import Contestant, read_contestants
from tunesmith.judging.statistics import Comparison, compare, summarize
from tunesmith.store import find_run

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "support-desk"
FIELDS = ("field.intent", "field.urgency", "field.order")
SAMPLED = "sampled_fields"
HEADINGS = {
    "fields": "right fields",
    "field.intent": "intent",
    "field.urgency": "urgency",
    "field.order": "order",
    "all_fields": "all fields",
    "schema_valid": "schema",
    "rouge_l": "ROUGE-L",
    SAMPLED: "right fields, sampled",
}
RESAMPLING_SEED = 17


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, required=True, help="where the runs are kept")
    options.add_argument(
        "--recipes", nargs="*", default=["recipe-dpo.yaml"], help="files of the example, beside recipe.yaml"
    )
    options.add_argument("--test", default="held-out.jsonl", help="rows of the example to score on")
    options.add_argument("--threads", type=int, help="cores to use; all unless given")
    options.add_argument("--finished", nargs="+", metavar="RUN", help="read these runs, the supervised one first")
    options.add_argument("--sampled", type=int, metavar="N", help="score N answers at temperature 1 to each row too")
    chosen = options.parse_args()
    names = chosen.finished or [
        run(each, chosen.root, chosen.test, chosen.threads) for each in ("recipe.yaml", *chosen.recipes)
    ]
    tuned = [tuned_of(name, chosen.root, chosen.sampled) for name in names]
    print(scores_table(tuned))
    print()
    print(differences_table(tuned[0], tuned[1:]))


def run(recipe: str, root: Path, test: str, threads: int | None) -> str:
    """Run a recipe up to its scores; the name of its run."""
    name = f"alignment-{Path(recipe).stem}"
    sets = [f"name={name}", f"ingest.test_files=[{test}]", *([f"runtime.num_threads={threads}"] if threads else [])]
    command = [sys.executable, "-m", "tunesmith.cli.main", "run", str(EXAMPLE / recipe), "--until", "evaluate"]
    command += ["--root", str(root), *(part for one in sets for part in ("--set", one))]
    print(f"## {recipe}\n   {' '.join(command)}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)
    return max(root.glob(f"{name}-[0-9]*"), key=lambda folder: folder.name).name


def tuned_of(name: str, root: Path, num_sampled: int | None) -> Contestant:
    """The trained model of a run. Values of sampled answers are in the order of the rows' ids, which is the same for all."""
    run = find_run(name, root)
    tuned = next(each for each in read_contestants(run) if each.method != "base")
    if num_sampled is None:
        return tuned
    drawn = sampled_fields(run, root, num_sampled)
    return replace(tuned, values={**tuned.values, SAMPLED: tuple(drawn[row] for row in sorted(drawn))})


def headings_of(models: Sequence[Contestant]) -> dict[str, str]:
    """Metric to heading, of what was measured."""
    return {
        name: text
        for name, text in HEADINGS.items()
        if name == "fields" or all(name in model.values for model in models)
    }


def values_of(model: Contestant, metric: str) -> list[float | None]:
    """A value for each held-out row. "fields" is the share of the three exact fields, as the reward of that name."""
    if metric != "fields":
        return list(model.values[metric])
    columns = zip(*(model.values[name] for name in FIELDS), strict=True)
    return [None if None in row else math.fsum(value or 0.0 for value in row) / len(FIELDS) for row in columns]


def scores_table(models: Sequence[Contestant]) -> str:
    """Means with their standard errors, a line for each model."""
    headings = headings_of(models)
    lines = [f"| trained | run | {' | '.join(headings.values())} |", "|---|---|" + "---:|" * len(headings)]
    for model in models:
        cells = [model.method, model.run]
        for metric in headings:
            summary = summarize(values_of(model, metric))
            cells.append(shown(metric, summary.mean or 0.0, summary.stderr or 0.0))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def differences_table(first: Contestant, others: Sequence[Contestant]) -> str:
    """Each model minus the first: mean difference and its error, and on how many rows it is better and worse."""
    headings = headings_of([first, *others])
    lines = [f"| minus {first.run} | {' | '.join(headings.values())} |", "|---|" + "---:|" * len(headings)]
    for model in others:
        cells = [f"{model.method} ({model.run})"]
        for metric in headings:
            cells.append(difference_cell(metric, difference(model, first, metric)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(model: Contestant, first: Contestant, metric: str) -> Comparison:
    """Paired by row. Raises ValueError for runs that answered other rows."""
    if model.test_digest != first.test_digest:
        raise ValueError(f"{model.run} and {first.run} were scored on different rows")
    ours, theirs = values_of(model, metric), values_of(first, metric)
    return compare(ours, theirs, lower_is_better=False, rng_seed=RESAMPLING_SEED)


def difference_cell(metric: str, found: Comparison) -> str:
    """ "+5.7 % ± 2.1 (20 : 7)": better on 20 rows, worse on 7."""
    value = shown(metric, found.difference or 0.0, found.stderr or 0.0, signed=True)
    return f"{value} ({found.wins} : {found.losses})"


def shown(metric: str, mean: float, error: float, *, signed: bool = False) -> str:
    """A share in percent, ROUGE-L as it is."""
    sign = "+" if signed else ""
    if metric == "rouge_l":
        return f"{mean:{sign}.3f} ± {error:.3f}"
    return f"{100 * mean:{sign}.1f} % ± {100 * error:.1f}"


if __name__ == "__main__":
    main()
