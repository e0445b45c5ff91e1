"""What the answers that a model draws at temperature 1 earn by the reward `fields`, a mean for each held-out row.

Policy gradients raise the expected reward of sampled answers; greedy answers show that only where the likeliest one changes. Owns the
drawing and the file that keeps what was drawn. Knows no table.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from tunesmith.chat.renderer import Renderer
from tunesmith.hashing import digest_json
from tunesmith.inference.rollouts import Rollout, RolloutSampler
from tunesmith.inference.transformers_engine import common_prefix
from tunesmith.judging.rewards.combining import WeightedRewards
from tunesmith.model.adapters import adapter_layers, merge_adapter
from tunesmith.model.catalog import base_model_path
from tunesmith.model.load import load_checkpoint
from tunesmith.protocols import Attempt, RewardContext
from tunesmith.recipe import Runtime
from tunesmith.recipe.rewards import FieldsOptions
from tunesmith.stages.evaluate import choose_device
from tunesmith.store import Run
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.types import Artifact, Conversation, Record, SamplingParams, Task

STOP, MAX_TOKENS, RNG_SEED = ', "reply"', 40, 4711


class Drawn(Record):
    """A line of the file: an answer up to the reply, and the share of its fields that are right."""

    row: str
    answer: str
    reward: float


def sampled_fields(run: Run, root: Path, num_answers: int, batch_size: int = 96) -> dict[str, float]:
    """Mean reward of num_answers answers for each held-out row, by its id. Drawn once: a file under `root` keeps them."""
    checkpoint, curated = _artifact(run, "align", "train"), _artifact(run, "curate")
    test = curated.file("test.jsonl")
    settings = [checkpoint.manifest.digest, test.read_text(encoding="utf-8"), num_answers, STOP, MAX_TOKENS, RNG_SEED]
    path = root / "sampled" / f"{digest_json(settings)[:16]}.jsonl"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_records(path, _draw(run, checkpoint, curated, num_answers, batch_size))
    rewards: dict[str, list[float]] = defaultdict(list)
    for line in read_records(path, Drawn):
        rewards[line.row].append(line.reward)
    return {row: math.fsum(values) / len(values) for row, values in rewards.items()}


def _draw(run: Run, checkpoint: Artifact, curated: Artifact, num_answers: int, batch_size: int) -> list[Drawn]:
    base_dir = base_model_path(_artifact(run, "base_model"))
    template = checkpoint.file("chat_template.jinja").read_text(encoding="utf-8")
    renderer = Renderer.for_model(base_dir, template)
    rows = [row for row in read_records(curated.file("test.jsonl"), Conversation) if row.reply is not None]
    prompts = [renderer.prompt(row.prompt) for row in rows]
    device, dtype = choose_device(Runtime())
    model = load_checkpoint(checkpoint, base_dir, device=device, dtype=dtype)
    sampler = RolloutSampler(
        merge_adapter(model) if adapter_layers(model) else model, batch_size=batch_size, decode=renderer.decode
    )
    groups = sampler.sample(
        prompts,
        SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, stop=(STOP,), rng_seed=RNG_SEED),
        group_size=num_answers,
        shared_prefix=common_prefix([prompt.input_ids for prompt in prompts]),
    )
    attempts = [_attempt(renderer, row, each) for row, group in zip(rows, groups, strict=True) for each in group]
    ids = [row.id for row in rows for _ in range(num_answers)]
    task = read_records(curated.file("task.json"), Task)[0]
    context = RewardContext(task, [row.reply or "" for row in rows], {}, _nobody, _nobody)
    rewarded = WeightedRewards([FieldsOptions()], context)(attempts)
    return [
        Drawn(row=row, answer=attempt.completion, reward=each.total)
        for row, attempt, each in zip(ids, attempts, rewarded, strict=True)
        if each.total is not None
    ]


def _attempt(renderer: Renderer, row: Conversation, rollout: Rollout) -> Attempt:
    text = renderer.decode(rollout.token_ids)
    if rollout.stop_string is not None:
        text = text[: text.find(rollout.stop_string)]
    return Attempt(row.prompt, text, row.reply, rollout.stop_string)


def _artifact(run: Run, *stages: str) -> Artifact:
    """Of the first of these stages that the run has."""
    found = next((each for stage in stages if (each := run.artifact(stage)) is not None), None)
    if found is None:
        raise SystemExit(f"{run.name} has not finished its stage {stages[-1]}: run it first")
    return found


def _nobody(_asked: Any) -> Any:
    raise AssertionError("the reward fields asks nobody")
