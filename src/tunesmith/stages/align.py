"""Stage align: the tuned model is moved by comparisons of answers, or by rewards of its own; a checkpoint comes out.

Wiring only: formulas are training/objectives', the loop is training/loop.py's, answers.py and rollouts.py bring the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunesmith.chat.renderer import Renderer
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.events import Note, Progress
from tunesmith.inference.reward_model import open_reward_model
from tunesmith.judging.rewards.combining import WeightedRewards
from tunesmith.model.adapters import AdapterConfig, adapter_layers, load_adapter
from tunesmith.model.catalog import base_model_path
from tunesmith.model.freezing import thaw
from tunesmith.model.load import ADAPTER_DIR, MODEL_DIR, load_model
from tunesmith.model.value_head import ATTACHED, save_value_head
from tunesmith.protocols import Context, RewardContext
from tunesmith.recipe import Runtime, Train
from tunesmith.recipe.align import ON_POLICY, REFERENCE_FREE, Align
from tunesmith.resolve import ALIGN_RATES
from tunesmith.stages.answers import render_answers
from tunesmith.stages.judge import LazyJudge
from tunesmith.stages.rollouts import ROLLOUTS, Rollouts
from tunesmith.stages.scalar_heads import first_value_head, with_own_reward_model
from tunesmith.stages.section_names import errors_name
from tunesmith.stages.spreading import Spreading, spread_setting, whole_again
from tunesmith.stages.tokenize import TASK, TEMPLATE, length_limit_of
from tunesmith.stages.train import (
    LOSSES_FILE,
    METRICS_FILE,
    choose_device,
    copy_companions,
    pace_of,
    precision_of,
    report,
    save_trained,
    threads,
)
from tunesmith.store import SCRATCH
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.training.batches import Samples
from tunesmith.training.falling import WatchedPairs
from tunesmith.training.loop import Places, Trained, train_on
from tunesmith.training.losses import LOSSES, Loss
from tunesmith.training.on_policy import OnPolicy
from tunesmith.training.pairs import labelled_samples, pair_samples, with_reference
from tunesmith.training.policy_losses import PolicyLoss
from tunesmith.training.preference_losses import Kto
from tunesmith.training.probing import probe_model
from tunesmith.training.ranks import Ranks
from tunesmith.training.reference import reference_log_probs
from tunesmith.training.sources import FixedSamples, Source
from tunesmith.types import Artifact, Conversation, Excluded, Inputs, Message, Outcome, Task

DROPPED = "dropped.jsonl"


@dataclass(frozen=True)
class _Job:
    """What every step needs to know."""

    section: Align
    inputs: Inputs
    out_dir: Path
    ctx: Context
    base_dir: Path
    renderer: Renderer
    model: PreTrainedModel
    adapter: AdapterConfig | None

    @property
    def pack_length(self) -> int:
        return int(self.inputs["tokenize"].facts["pack_length"])

    @property
    def length_limit(self) -> int:
        return length_limit_of(self.inputs)


@dataclass(frozen=True)
class _Work:
    """What is trained on, by which loss."""

    source: Source
    loss: Loss
    num_rows: int
    dropped: list[Excluded] = field(default_factory=list[Excluded])
    rollouts: Rollouts | None = None


def run(section: Align, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads a checkpoint and preferences (of the prefer stage, of the files, or both), or the training split's prompts;
    writes what train writes."""
    tokenized, tuned = inputs["tokenize"], inputs["train"]
    runtime: Runtime = ctx.runtime
    base_dir = base_model_path(inputs["base_model"])
    renderer = Renderer(load_tokenizer(base_dir), tokenized.file(TEMPLATE).read_text(encoding="utf-8"))
    device = choose_device(runtime.device)
    with (
        errors_name(section, "align"),
        threads(runtime),
        LazyJudge(section, inputs.files, out_dir, ctx, "recipe.align") as judge,
    ):
        precision = precision_of(runtime, base_dir, device)
        ctx.events.emit(Note(message=f"aligning on {device}, {precision.reason}"))
        on_policy = section.loss in ON_POLICY
        spreading = Spreading(spread_setting(runtime, on_policy), device, tuned.facts["method"] == "qlora")

        def load() -> tuple[PreTrainedModel, AdapterConfig | None]:
            return load_policy(tuned, base_dir, torch.device(spreading.loading_device), precision.dtype)

        model, adapter = load()
        spread_over = spreading.settle(model, ctx.events)
        probe_model(model)
        job = _Job(section, inputs, out_dir, ctx, base_dir, renderer, model, adapter)
        work = _on_policy(job, judge) if on_policy else _on_answers(job)
        trained = train_on(
            model,
            work.source,
            section,
            learning_rate=_rate(section, adapter),
            pace=pace_of(runtime),
            places=Places(out_dir / SCRATCH / "checkpoints", out_dir / METRICS_FILE, ctx.events),
            loss=work.loss,
            spread_over=spread_over,
        )
        asked = judge.facts() if Ranks.current().is_first else {}  # another rank would wait for the judge's lock
        if not Ranks.current().is_first:
            return _outcome(section, trained, work, tuned, asked)
        head: Any = getattr(model, ATTACHED, None)
        if head is not None:  # it is kept beside the model, and no part of it
            save_value_head(out_dir, head)
            delattr(model, ATTACHED)
        weights = {name: value for name, value in trained.weights.items() if not name.startswith(ATTACHED)}
        if spread_over is not None:
            model = whole_again(lambda: load()[0], weights)
        probe_ids = torch.tensor([renderer.prompt(_PROBE).input_ids])
        save_trained(model, adapter, replace(trained, weights=weights), probe_ids, base_dir, out_dir)
    report(trained, ctx)
    copy_companions(tokenized, out_dir)
    write_records(out_dir / DROPPED, work.dropped)
    write_records(out_dir / LOSSES_FILE, trained.losses)
    return _outcome(section, trained, work, tuned, asked)


def load_policy(
    checkpoint: Artifact, base_dir: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, AdapterConfig | None]:
    """A checkpoint's model with what was trained of it trainable again, and its adapter's configuration.

    Without dropout: an answer's probability must be that with which it was drawn, and that which the reference has.
    """
    method = checkpoint.facts["method"]
    if method == "full":
        model = load_model(checkpoint.path / MODEL_DIR, device=str(device), dtype=dtype)
        tuning = Train.model_validate(checkpoint.manifest.section)
        thaw(model, tuning.trainable_layers, tuning.train_embeddings)
        _drop_nothing(model)
        return model, None
    model = load_model(base_dir, device=str(device), dtype=dtype, quantised=method == "qlora")
    config = load_adapter(model, checkpoint.path / ADAPTER_DIR)
    for layer in adapter_layers(model).values():
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(True)
    _drop_nothing(model)
    return model, config


def _drop_nothing(model: PreTrainedModel) -> None:
    """Sets every rate of dropout that a layer reads to 0."""
    for layer in model.modules():
        for name, rate in list(vars(layer).items()):
            if isinstance(rate, float) and ("drop" in name or isinstance(layer, nn.Dropout)):
                setattr(layer, name, 0.0)


def _rate(section: Align, adapter: AdapterConfig | None) -> float:
    if section.learning_rate != "auto":
        return section.learning_rate
    return ALIGN_RATES["full" if adapter is None else "adapter"]


def _on_answers(job: _Job) -> _Work:
    """Pairs or labelled answers, with what the loss needs to know of each."""
    section, inputs = job.section, job.inputs
    answers = render_answers(section, inputs, job.renderer, job.length_limit)
    if section.loss == "kto":
        samples = _referenced(job, labelled_samples(answers.first, answers.desirable, answers.ids))
        mismatched = _referenced(job, labelled_samples(answers.second, answers.desirable, answers.ids))
        loss: Loss = Kto(section, mismatched)
    else:
        loss = LOSSES.load(section.loss, where="recipe.align.loss")(section)
        samples = pair_samples(list(zip(answers.first, answers.second, strict=True)), answers.ids)
        if section.loss not in REFERENCE_FREE:
            samples, loss = _referenced(job, samples), WatchedPairs(loss, job.ctx.events)
    pack_length = max(job.pack_length, int(samples.group_lengths.max()))
    return _Work(FixedSamples(samples, pack_length, section), loss, len(answers.ids), answers.dropped)


def _referenced(job: _Job, samples: Samples) -> Samples:
    """Shared by all runs of a root that start at this checkpoint."""

    def show(done: int, total: int) -> None:
        job.ctx.events.emit(Progress(task="reference", done=done, total=total, unit="answers"))

    folder = job.ctx.ledgers / "reference" if job.ctx.ledgers is not None else job.out_dir / SCRATCH
    arithmetic = str(job.model.dtype).removeprefix("torch.")
    path = folder / f"{job.inputs['train'].manifest.digest[:32]}-{arithmetic}.jsonl"

    def compute() -> NDArray[np.float64]:
        with _sole_writer(path, job.ctx):
            return reference_log_probs(job.model, samples, path, show)

    return with_reference(samples, Ranks.current().from_first(compute))


@contextmanager
def _sole_writer(path: Path, ctx: Context) -> Generator[None]:
    """Two runs that start at one checkpoint write one file: the second waits, and finds the answers there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = "another run asks the same reference model; this one goes on when that is done, and uses its answers"
        ctx.events.emit(Note(level="warning", message=message))
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def _on_policy(job: _Job, judge: LazyJudge) -> _Work:
    """The training split's prompts, answered on the way."""
    section, curated = job.section, job.inputs["curate"]
    task = read_records(curated.file(TASK), Task)[0]
    all_rows = read_records(curated.file("train.jsonl"), Conversation)
    rows = [row for row in all_rows if row.reply is not None]
    detail = "the conversation does not end in an answer, so nothing is asked"
    silent = [Excluded(reason="no_reply", detail=detail, where=row.place) for row in all_rows if row.reply is None]

    def open_scorer(folder: Path) -> Any:
        return open_reward_model(folder, job.base_dir, device=str(job.model.device), dtype=job.model.dtype)

    references = [row.reply for row in rows if row.reply is not None]
    rewards = WeightedRewards(
        with_own_reward_model(section.rewards, job.inputs),
        RewardContext(task, references, job.inputs.files, judge.ask_all, open_scorer),
    )
    head = None
    if section.loss == "ppo":
        width = int(job.model.config.get_text_config(decoder=True).hidden_size)
        head = first_value_head(section, job.inputs, job.base_dir, width, job.ctx.events)
        job.model.add_module(ATTACHED, head.to(job.model.device))
    rollouts = Rollouts(
        job.model,
        job.renderer,
        rows,
        rewards,
        section,
        batch_size=job.ctx.runtime.eval_batch_size,
        value_head=head,
        log=job.out_dir / ROLLOUTS,
        length_limit=job.length_limit,
        events=job.ctx.events,
    )
    source = OnPolicy(
        rollouts.draw,
        num_rollouts=rollouts.num_rollouts,
        rollout_epochs=section.rollout_epochs,
        max_steps=section.max_steps,
        pack_length=job.pack_length,
        rng_seed=section.rng_seed,
    )
    return _Work(source, PolicyLoss(section, head), rollouts.num_prompts, silent + rollouts.dropped, rollouts)


def _outcome(section: Align, trained: Trained, work: _Work, tuned: Artifact, asked: dict[str, Any]) -> Outcome:
    reasons = Counter(row.reason for row in work.dropped)
    last = trained.losses[-1]
    facts: dict[str, Any] = {
        **{name: tuned.facts[name] for name in _HANDED_ON},
        **asked,
        "loss": section.loss,
        "tuned_digest": tuned.manifest.digest,
        "num_steps": len(trained.losses),
        "num_trainable": trained.num_trainable,
        "first_loss": trained.losses[0].loss,
        "final_loss": last.loss,
        **{f"final_{name}": value for name, value in (last.measures or {}).items()},
    }
    counts = {
        "rows": work.num_rows + len(work.dropped),
        "used": work.num_rows,
        "dropped": len(work.dropped),
        **{f"dropped_{reason}": count for reason, count in reasons.items()},
        **(work.rollouts.counts if work.rollouts is not None else {}),
        "steps": len(trained.losses),
        "trainable_parameters": trained.num_trainable,
    }
    return Outcome("checkpoint", counts, facts)


_HANDED_ON = ("method", "base_weights_digest", "template_digest", "stop_ids", "max_length")
"""Facts that later stages read of a checkpoint, whoever made it."""

_PROBE = (Message(role="user", content="Hello?"),)
"""What is asked before and after saving."""
