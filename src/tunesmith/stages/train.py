"""Stage train: the base model's weights change on the packed samples; an adapter or a whole model comes out.

Wiring only: how a step works is training/loop.py's, what an adapter is model/adapters.py's.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import RecipeError, TrainingError
from tunesmith.events import Note
from tunesmith.model.adapters import (
    AdapterConfig,
    add_adapter,
    choose_targets,
    save_adapter,
    store_transposed,
    target_names,
)
from tunesmith.model.catalog import base_model_path
from tunesmith.model.folder import read_config
from tunesmith.model.freezing import describe_trainable, thaw, within_top
from tunesmith.model.gguf import quiet_transformers
from tunesmith.model.load import ADAPTER_DIR, MODEL_DIR, load_model
from tunesmith.model.quantised import check_quantisation
from tunesmith.protocols import Context
from tunesmith.recipe import Runtime, Train
from tunesmith.resolve import LEARNING_RATES
from tunesmith.stages.spreading import Spreading, whole_again
from tunesmith.stages.tokenize import ROWS, SAMPLES, TASK, TEMPLATE, TokenizedRow
from tunesmith.store import SCRATCH, write_atomic
from tunesmith.text.jsonl import read_records, write_records
from tunesmith.training.batches import Samples, load_samples
from tunesmith.training.disk_plan import check_training_disk
from tunesmith.training.loop import Trained, train
from tunesmith.training.losses import LOSSES
from tunesmith.training.precision import Precision, choose_precision
from tunesmith.training.probing import probe_model
from tunesmith.training.ranks import Ranks
from tunesmith.training.saving import check_saved_adapter, check_saved_model, first_sample, save_full_model
from tunesmith.training.step import Pace
from tunesmith.types import Artifact, Inputs, Outcome

LOSSES_FILE = "losses.jsonl"
METRICS_FILE = "logs/metrics.jsonl"


def run(section: Train, inputs: Inputs, out_dir: Path, ctx: Context) -> Outcome:
    """Reads the tokenized samples and the base model's folder; writes the adapter or model and losses.jsonl."""
    tokenized, base = inputs["tokenize"], inputs["base_model"]
    runtime: Runtime = ctx.runtime
    device = choose_device(runtime.device)
    quantised = section.method == "qlora"
    if quantised:
        check_quantisation(device)
    samples = _read_samples(tokenized)
    base_dir = base_model_path(base)
    loss = LOSSES.load(section.loss, where="recipe.train.loss")(section)
    with threads(runtime):
        precision = precision_of(runtime, base_dir, device)
        ctx.events.emit(Note(message=f"training on {device}, {precision.reason}"))
        spreading = Spreading(runtime.shard_weights, device, quantised)

        def load() -> tuple[PreTrainedModel, AdapterConfig | None]:
            found = load_model(base_dir, device=spreading.loading_device, dtype=precision.dtype, quantised=quantised)
            return found, _prepare(found, section, base)

        model, adapter = load()
        spread_over = spreading.settle(model, ctx.events)
        check_training_disk(out_dir, model, keep_checkpoints=runtime.keep_checkpoints, whole_model=adapter is None)
        ctx.events.emit(Note(message=describe_trainable(model)))
        probe_model(model)
        rate = LEARNING_RATES[section.method] if section.learning_rate == "auto" else section.learning_rate
        trained = train(
            model,
            samples,
            section,
            learning_rate=rate,
            pack_length=int(tokenized.facts["pack_length"]),
            pace=pace_of(runtime),
            checkpoint_dir=out_dir / SCRATCH / "checkpoints",
            metrics_path=out_dir / METRICS_FILE,
            events=ctx.events,
            loss=loss,
            spread_over=spread_over,
        )
        outcome = _outcome(section, trained, samples, tokenized, base)
        if not Ranks.current().is_first:
            return outcome
        if spread_over is not None:
            model = whole_again(lambda: load()[0], trained.weights)
        save_trained(model, adapter, trained, first_sample(samples), base_dir, out_dir)
    report(trained, ctx)
    copy_companions(tokenized, out_dir)
    write_records(out_dir / LOSSES_FILE, trained.losses)
    return outcome


def choose_device(wanted: str) -> torch.device:
    """runtime.device as torch means it; auto = a CUDA device where there is one. Each rank of several on a machine gets a
    device of its own. RecipeError where it is not there."""
    ranks = Ranks.current()
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    refuse_shared_device(wanted, ranks.size)
    if wanted == "cuda" and ranks.size > 1:
        wanted = f"cuda:{ranks.device_index}"
    where = "recipe.runtime.device"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise RecipeError(f"{wanted!r} is no device; expected auto, cpu, cuda or cuda:N", where=where) from None
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"{wanted!r} is not supported; expected auto, cpu, cuda or cuda:N", where=where)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"there is no device {wanted!r}: torch sees {torch.cuda.device_count()} CUDA devices", where=where
        )
    return device


def refuse_shared_device(wanted: str, num_processes: int) -> None:
    """RecipeError where several processes are given one CUDA device by number."""
    if num_processes > 1 and wanted.startswith("cuda:"):
        raise RecipeError(
            f"{num_processes} processes cannot share the one device {wanted!r}",
            where="recipe.runtime.device",
            hint="set device: cuda, and each process takes one of its own (CUDA_VISIBLE_DEVICES says of which), "
            "or train in one process (num_processes: 1)",
        )


def precision_of(runtime: Runtime, base_dir: Path, device: torch.device) -> Precision:
    """runtime.precision, with auto measured on products of this model's shape by the first rank. Inside `threads`."""
    config = read_config(base_dir)
    config = config.get("text_config") or config
    width = int(config.get("hidden_size") or 1024)
    inner = int(config.get("intermediate_size") or 4 * width)
    return Ranks.current().from_first(lambda: choose_precision(runtime.precision, device, width, inner))


def _read_samples(tokenized: Artifact) -> Samples:
    rows = read_records(tokenized.file(ROWS), TokenizedRow)
    return load_samples(tokenized.file(SAMPLES), [row.id for row in rows])


@contextmanager
def threads(runtime: Runtime) -> Generator[None]:
    """torch's threads while the stage runs: what the recipe says, or the cores this process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(runtime.usable_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(model: PreTrainedModel, section: Train, base: Artifact) -> AdapterConfig | None:
    """Make the right weights trainable. Returns the adapter's configuration, None for full fine-tuning."""
    if section.method == "full":
        thaw(model, section.trainable_layers, section.train_embeddings)
        return None
    targets = within_top(model, choose_targets(model, section.lora_target_modules), section.trainable_layers)
    config = AdapterConfig(
        rank=section.lora_rank,
        alpha=section.lora_alpha,
        dropout=section.lora_dropout,
        targets=targets,
        target_names=target_names(model, targets),
        base_model=_public_name(base),
        use_dora=section.method == "dora",
        use_rslora=section.use_rslora,
        fan_in_fan_out=store_transposed(model, targets),
    )
    add_adapter(model, config, section.rng_seed)
    return config


def _public_name(base: Artifact) -> str:
    """The base model's name for adapter_config.json; a folder's or file's own name, never a path of this machine."""
    name = str(base.facts["name"])
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".gguf") or Path(name).exists()
    return Path(name).name if looks_like_path else name


def pace_of(runtime: Runtime) -> Pace:
    every = runtime.checkpoint_every_steps
    return Pace(
        micro_batch_size=runtime.micro_batch_size,
        checkpoint_every_steps=None if every == "auto" else every,
        keep_checkpoints=runtime.keep_checkpoints,
        log_every_steps=runtime.log_every_steps,
        gradient_checkpointing=runtime.gradient_checkpointing,
        share_prefixes=runtime.share_prefixes,
        trim_last_block=runtime.trim_last_block,
        cache_activations=runtime.cache_activations,
        compile_blocks=runtime.compile_blocks,
    )


def save_trained(
    model: PreTrainedModel,
    adapter: AdapterConfig | None,
    trained: Trained,
    probe_ids: torch.Tensor,
    base_dir: Path,
    out_dir: Path,
) -> None:
    """probe_ids (1, T): what is asked before and after saving."""
    with quiet_transformers():
        if adapter is not None:
            save_adapter(out_dir / ADAPTER_DIR, adapter, trained.weights)
            check_saved_adapter(model, out_dir / ADAPTER_DIR, base_dir, probe_ids)
        else:
            shutil.rmtree(out_dir / MODEL_DIR, ignore_errors=True)
            save_full_model(model, trained.weights, base_dir, out_dir / MODEL_DIR)
            check_saved_model(model, out_dir / MODEL_DIR, probe_ids)


def report(trained: Trained, ctx: Context) -> None:
    speed = f"{trained.tokens_per_second:,.0f} tokens/s, " if trained.tokens_per_second else ""
    first, last = trained.losses[0].loss, trained.losses[-1].loss
    memory = trained.peak_memory_bytes / 1e9
    message = f"loss {first:.3f} -> {last:.3f} in {len(trained.losses)} steps, {speed}peak memory {memory:.1f} GB"
    ctx.events.emit(Note(message=message))


def copy_companions(tokenized: Artifact, out_dir: Path) -> None:
    for name in (TEMPLATE, TASK):
        write_atomic(out_dir / name, tokenized.file(name).read_bytes())


def _outcome(section: Train, trained: Trained, samples: Samples, tokenized: Artifact, base: Artifact) -> Outcome:
    losses = trained.losses
    if not losses:
        raise TrainingError("training had no step to take", where="recipe.train")
    facts: dict[str, Any] = {
        "method": section.method,
        "base_weights_digest": base.facts["weights_digest"],
        "template_digest": tokenized.facts["template_digest"],
        "stop_ids": tokenized.facts["stop_ids"],
        "max_length": tokenized.facts["max_length"],
        "num_steps": len(losses),
        "num_trainable": trained.num_trainable,
        "first_loss": losses[0].loss,
        "final_loss": losses[-1].loss,
    }
    counts = {
        "steps": len(losses),
        "samples": len(samples.lengths),
        "supervised_tokens_seen": sum(row.num_supervised for row in losses),
        "trainable_parameters": trained.num_trainable,
    }
    return Outcome("checkpoint", counts, facts)
