"""A recipe that a model of two blocks runs in seconds, up to alignment, and the rows it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shelf import BEFORE_TRAINING, ShelfStore
from tunesmith.pipeline import execute
from tunesmith.protocols import EventSink
from tunesmith.resolve import load_recipe
from tunesmith.store import Run

RECIPE = """
name: tiny
base_model: {base}
ingest: {{files: [rows.jsonl, {more}], task: Answer in one word.}}
curate: {{max_similarity: 1}}
train: {{num_epochs: 1, lora_rank: 4, learning_rate: 1.0e-3}}
{extra}
evaluate: null
export: null
runtime: {{num_threads: 1, precision: fp32, eval_batch_size: 4}}
"""
WORDS = [
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "they", "have", "said", "it", "is",
    "already", "so",
]  # fmt: skip
ROWS = [{"instruction": f"say {word} {n}", "output": f"{word} dog"} for n, word in enumerate(WORDS[:10])]
PAIRS = [
    *(
        {"prompt": f"which {word}?", "chosen": f"fox {n}", "rejected": f"the lazy {word} and more"}
        for n, word in enumerate(WORDS)
    ),
    {"prompt": "which is it, " * 300, "chosen": "fox", "rejected": "dog"},  # longer than the model reads
]
POLICY = "rewards: [{name: python, function: 'reward.py:shorter'}], num_generations: 4, prompts_per_rollout: 3, max_tokens: 12"


class TinyRun:
    """Runs the recipe in a folder that holds its rows; what comes before the stages of a test is taken from the shelf."""

    def __init__(self, folder: Path, base_dir: Path, events: EventSink, shelf: Path) -> None:
        self._folder, self._base_dir, self._events, self._shelf = folder, base_dir, events, shelf
        write_lines(folder / "rows.jsonl", ROWS)
        write_lines(folder / "pairs.jsonl", PAIRS)

    def __call__(
        self,
        extra: str,
        *overrides: str,
        until: str | None = "align",
        more: str = "pairs.jsonl",
        events: EventSink | None = None,
    ) -> Run:
        recipe = RECIPE.format(base=self._base_dir, extra=extra, more=more)
        (self._folder / "recipe.yaml").write_text(recipe)
        store = ShelfStore(self._folder / "root", self._shelf, (*BEFORE_TRAINING, "train"))
        return execute(load_recipe(self._folder, list(overrides)), store, events or self._events, until)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_reward(folder: Path, body: str) -> None:
    (folder / "reward.py").write_text(f"def shorter(prompt, completion, reference):\n    {body}\n")
