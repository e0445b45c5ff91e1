"""One rank of a training, started by rank_runs.py: trains the model of a folder and writes what came out."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tunesmith.errors import TrainingError
from tunesmith.events import CallbackSink
from tunesmith.model.adapters import AdapterConfig, add_adapter, choose_targets, target_names
from tunesmith.model.load import load_model
from tunesmith.recipe import Runtime, Train
from tunesmith.stages.train import pace_of
from tunesmith.training.batches import Samples
from tunesmith.training.loop import train
from tunesmith.training.losses import CrossEntropy
from tunesmith.training.ranks import AgreedStop
from tunesmith.training.step import Stepper

TAKE = Stepper.take
MARK = 299  # a token of one row only
PACE = {"micro_batch_size": 1, "checkpoint_every_steps": 2, "cache_activations": False}


def make_trainable(model: Any, method: str) -> None:
    if method == "full":
        model.requires_grad_(True)
        return
    targets = choose_targets(model, ("all-linear",))
    names = target_names(model, targets)
    config = AdapterConfig(4, 8.0, 0.0, targets, names, "tiny", use_dora=method == "dora")
    add_adapter(model, config, rng_seed=11)
    generator = torch.Generator().manual_seed(12)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.05, generator=generator)


def disturb(spec: dict[str, Any], rank: int, model: Any, samples: Samples) -> None:
    """At one step (from 0) on one rank a signal comes, or from it on a layer gives NaN for one row, whichever rank has it."""
    given = spec.get("disturb")
    if not given:
        return
    at = {"step": -1}

    def take(self: Stepper, *args: Any) -> Any:
        at["step"] = args[2]
        if given.get("rank") == rank and given["step"] == at["step"]:
            signal.raise_signal(getattr(signal, given["signal"]))
        return TAKE(self, *args)

    stepper: Any = Stepper
    stepper.take = take
    if "row" not in given:
        return
    samples.input_ids[samples.input_ids == MARK] -= 1
    samples.input_ids[samples.rows(given["row"])] = MARK
    seen = {"row": False}

    def look(_module: Any, inputs: Any, _output: Any) -> None:
        seen["row"] = bool((inputs[0] == MARK).any())

    def spoil(_module: Any, _inputs: Any, output: Any) -> Any:
        return output * float("nan") if seen["row"] and at["step"] >= given["step"] else None

    model.model.embed_tokens.register_forward_hook(look)
    model.get_submodule(given["layer"]).register_forward_hook(spoil)


def main(spec: dict[str, Any], rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        store = dist.FileStore(str(spec["store"]), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    dtype = getattr(torch, str(spec.get("dtype", "float32")))
    model = load_model(Path(str(spec["model"])), device="cpu", dtype=dtype)
    make_trainable(model, str(spec.get("method", "full")))
    lengths = np.array(spec["lengths"], dtype=np.int64)
    rng = np.random.default_rng(3)
    samples = Samples(
        input_ids=rng.integers(3, 300, size=int(lengths.sum())).astype(np.int32),
        loss_mask=np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.uint8),
        lengths=lengths,
        ids=tuple(f"row-{n}" for n in range(len(lengths))),
    )
    out, section, notes = Path(str(spec["out"])), dict(spec.get("section") or {}), list[str]()
    disturb(spec, rank, model, samples)
    learn = partial(
        train,
        model,
        samples,
        Train.model_validate(
            {"global_batch_size": 3, "num_epochs": 2, "max_steps": spec.get("max_steps"), **section, "method": "full"}
        ),
        learning_rate=1e-2,
        pack_length=40,
        pace=pace_of(Runtime.model_validate({**PACE, "gradient_checkpointing": bool(spec.get("recompute"))})),
        checkpoint_dir=out / "checkpoints",
        metrics_path=out / f"metrics-{rank}.jsonl",
        events=CallbackSink(lambda event: notes.append(getattr(event, "message", ""))),
        loss=CrossEntropy(),
        spread_over=torch.device("cpu") if spec.get("spread") and size > 1 else None,
    )
    try:
        trained = learn()
    except (KeyboardInterrupt, AgreedStop, TrainingError) as stop:
        (out / f"stopped-{rank}.txt").write_text(f"{type(stop).__name__}: {stop}")
        if not spec.get("disturb"):
            raise
        return
    finally:
        Stepper.take = TAKE
        if size > 1:
            dist.destroy_process_group()
    (out / f"notes-{rank}.txt").write_text("\n".join(notes))
    torch.save({name: weight.detach() for name, weight in trained.weights.items()}, out / f"weights-{size}-{rank}.pt")
    (out / f"losses-{size}-{rank}.json").write_text(json.dumps([line.loss for line in trained.losses]))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    for number, each in enumerate(given if isinstance(given, list) else [given]):
        main({**each, "store": f"{each['store']}-{number}"}, int(sys.argv[2]), int(sys.argv[3]))
