"""Stage reward_model: the tuned model gets a scalar head and learns from pairs which of two answers is better.

What comes out is what the reward `reward_model` loads. Wiring only: the formula is training/objectives', the loop is
training/loop.py's. Pairs that are held out are measured, never learnt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tunesmith.chat.renderer import Renderer
from tunesmith.chat.tokenizer import load_tokenizer
from tunesmith.events import Note
from tunesmith.inference.reward_model import REWARD_MODEL
from tunesmith.judging.statistics import summarize
from tunesmith.model.adapters import AdapterConfig, adapter_layers
from tunesmith.model.catalog import base_model_path
from tunesmith.model.freezing import describe_trainable, top_blocks
from tunesmith.model.load import MODEL_DIR
from tunesmith.model.value_head import ATTACHED, ValueHead, attached, new_value_head, save_value_head
from tunesmith.protocols import Context
from tunesmith.recipe import RewardModel, Runtime
from tunesmith.resolve import REWARD_MODEL_RATES
from tunesmith.stages.align import DROPPED, load_policy
from tunesmith.stages.reward_pairs import RewardPairs, render_reward_pairs
from tunesmith.stages.section_names import errors_name
from tunesmith.stages.spreading import Spreading, whole_again
from tunesmith.stages.tokenize import TEMPLATE
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
from tunesmith.text.jsonl import write_records
from tunesmith.training.batches import Samples
from tunesmith.training.disk_plan import check_training_disk
from tunesmith.training.loop import Trained, train
from tunesmith.training.probing import probe_model
from tunesmith.training.ranks import Ranks
from tunesmith.training.reward_model import RewardModelLoss, measure_scores
from tunesmith.training.saving import first_sample
from tunesmith.types import Artifact, Inputs, Outcome, Record

HELD_OUT = "held_out.jsonl"


class ScoredPair(Record):
    """What the finished model says of a pair that it has not learnt from."""

    id: str
    chosen: float
    rejected: float


def run(section: RewardModel, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads a checkpoint and preferences (of the files, of the prefer stage, or both); writes adapter/ or model/,
    value_head.safetensors, held_out.jsonl and what train writes beside its weights."""
    tokenized, tuned = inputs["tokenize"], inputs["train"]
    runtime: Runtime = ctx.runtime
    base_dir = base_model_path(inputs["base_model"])
    renderer = Renderer(load_tokenizer(base_dir), tokenized.file(TEMPLATE).read_text(encoding="utf-8"))
    pairs = render_reward_pairs(section, inputs, renderer)
    device = choose_device(runtime.device)
    with errors_name(section, "reward_model"), threads(runtime):
        precision = precision_of(runtime, base_dir, device)
        ctx.events.emit(Note(message=f"training a reward model on {device}, {precision.reason}"))
        spreading = Spreading(runtime.shard_weights, device, tuned.facts["method"] == "qlora")

        def load() -> tuple[PreTrainedModel, AdapterConfig | None]:
            return load_policy(tuned, base_dir, torch.device(spreading.loading_device), precision.dtype)

        model, adapter = load()
        _choose_trainable(model, section)
        spread_over = spreading.settle(model, ctx.events)
        probe_model(model)
        head = new_value_head(int(model.config.get_text_config(decoder=True).hidden_size), section.rng_seed)
        with attached(model, head.to(model.device)):
            check_training_disk(out_dir, model, keep_checkpoints=runtime.keep_checkpoints, whole_model=adapter is None)
            ctx.events.emit(Note(message=describe_trainable(model)))
            trained = train(
                model,
                pairs.learnt,
                section,
                learning_rate=_rate(section, adapter),
                pack_length=max(int(tokenized.facts["pack_length"]), int(pairs.learnt.group_lengths.max())),
                pace=pace_of(runtime),
                checkpoint_dir=out_dir / SCRATCH / "checkpoints",
                metrics_path=out_dir / METRICS_FILE,
                events=ctx.events,
                loss=RewardModelLoss(section, head),
                spread_over=spread_over,
            )
        if not Ranks.current().is_first:
            return _outcome(trained, pairs, tuned, _measured(None))
        if spread_over is not None:
            model, head = _whole_again(lambda: load()[0], trained)
        scores = None if pairs.held_out is None else measure_scores(model, head, pairs.held_out)
        measured = _measured(scores)
        outcome = _outcome(trained, pairs, tuned, measured)
        save_value_head(out_dir, head)
        stored = base_dir if adapter is not None else tuned.file(MODEL_DIR)  # where frozen weights are read from
        kept = replace(trained, weights=_weights_to_keep(model, trained))
        save_trained(model, adapter, kept, first_sample(pairs.learnt), stored, out_dir)
    report(trained, ctx)
    copy_companions(tokenized, out_dir)
    write_records(out_dir / DROPPED, pairs.dropped)
    write_records(out_dir / LOSSES_FILE, trained.losses)
    write_records(out_dir / HELD_OUT, _scored(pairs.held_out, scores))
    _tell(measured, ctx)
    return outcome


def _whole_again(load: Callable[[], PreTrainedModel], trained: Trained) -> tuple[PreTrainedModel, ValueHead]:
    """The model and its head as they were before they were spread, with the weights they have now."""
    model = whole_again(load, _without_head(trained.weights))
    head = new_value_head(int(model.config.get_text_config(decoder=True).hidden_size), 0)
    head.load_state_dict({name: trained.weights[f"{ATTACHED}.{name}"] for name in head.state_dict()})
    return model, head.to(model.device)


def _without_head(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(f"{ATTACHED}.")}


def _choose_trainable(model: PreTrainedModel, section: RewardModel) -> None:
    """Freezes what does not go on changing: all below the topmost blocks, and an output head that no score passes."""
    layers = section.trainable_layers
    if layers == 0:
        model.requires_grad_(False)
    elif layers != "all":
        top = tuple(f"{path}." for path in top_blocks(model, layers))
        for name, parameter in model.named_parameters():
            if not name.startswith(top):
                parameter.requires_grad_(False)
    head: Any = model.get_output_embeddings()
    table: Any = model.get_input_embeddings()
    if isinstance(head, nn.Linear) and head.weight is not table.weight:
        head.requires_grad_(False)


def _rate(section: RewardModel, adapter: AdapterConfig | None) -> float:
    if section.learning_rate != "auto":
        return section.learning_rate
    if section.trainable_layers == 0:
        return REWARD_MODEL_RATES["head"]
    return REWARD_MODEL_RATES["full" if adapter is None else "adapter"]


def _weights_to_keep(model: PreTrainedModel, trained: Trained) -> dict[str, torch.Tensor]:
    """What changed, but for the head; of an adapter every part, also those that were frozen."""
    kept = _without_head(trained.weights)
    for path, layer in adapter_layers(model).items():
        for part in layer.parts:
            kept.setdefault(f"{path}.{part}", getattr(layer, part))
    return kept


def _scored(samples: Samples | None, scores: NDArray[np.float64] | None) -> list[ScoredPair]:
    if samples is None or scores is None:
        return []
    pairs = zip(samples.ids[::2], scores.reshape(-1, 2).tolist(), strict=True)
    return [ScoredPair(id=name, chosen=chosen, rejected=rejected) for name, (chosen, rejected) in pairs]


def _measured(scores: NDArray[np.float64] | None) -> dict[str, float | int | None]:
    """Over held-out pairs: share told apart rightly (a tie is not), mean margin, mean and deviation of all scores."""
    if scores is None:
        return {"held_out_pairs": 0}
    chosen, rejected = scores.reshape(-1, 2).T
    accuracy = summarize((chosen > rejected).astype(float).tolist())
    margin = summarize((chosen - rejected).tolist())
    return {
        "held_out_pairs": len(chosen),
        "held_out_accuracy": accuracy.mean,
        "held_out_accuracy_stderr": accuracy.stderr,
        "held_out_margin": margin.mean,
        "held_out_margin_stderr": margin.stderr,
        "held_out_score_mean": round(float(scores.mean()), 6),
        "held_out_score_deviation": round(float(scores.std()), 6),
    }


def _tell(measured: dict[str, float | int | None], ctx: Context) -> None:
    if not measured["held_out_pairs"]:
        message = "no pair is held out, so nobody knows how well this reward model tells new answers apart"
        ctx.events.emit(Note(level="warning", message=message))
        return
    error = measured["held_out_accuracy_stderr"]
    more = "" if error is None else f" +- {100 * error:.1f}"
    message = (
        f"{100 * (measured['held_out_accuracy'] or 0):.1f}{more} % of {measured['held_out_pairs']} held-out pairs are told "
        f"apart rightly, with a mean margin of {measured['held_out_margin']:.3f}"
    )
    ctx.events.emit(Note(message=message))


def _outcome(trained: Trained, pairs: RewardPairs, tuned: Artifact, measured: dict[str, float | int | None]) -> Outcome:
    reasons = Counter(row.reason for row in pairs.dropped)
    num_learnt, num_held_out = len(pairs.learnt.groups), int(measured["held_out_pairs"] or 0)
    last = trained.losses[-1]
    facts: dict[str, Any] = {
        **{name: tuned.facts[name] for name in _HANDED_ON},
        "tuned_digest": tuned.manifest.digest,
        "num_steps": len(trained.losses),
        "num_trainable": trained.num_trainable,
        "first_loss": trained.losses[0].loss,
        "final_loss": last.loss,
        **{f"final_{name}": value for name, value in (last.measures or {}).items()},
        **measured,
    }
    counts = {
        "pairs": num_learnt + num_held_out + len(pairs.dropped),
        "used": num_learnt,
        "held_out": num_held_out,
        "dropped": len(pairs.dropped),
        **{f"dropped_{reason}": count for reason, count in reasons.items()},
        "steps": len(trained.losses),
        "trainable_parameters": trained.num_trainable,
    }
    return Outcome(REWARD_MODEL, counts, facts)


_HANDED_ON = ("method", "base_weights_digest", "template_digest", "stop_ids", "max_length")
"""Facts that whoever opens the artifact reads, as of any checkpoint."""
