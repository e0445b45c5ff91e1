"""The training loop: samples in, changed weights out, and a checkpoint to continue from at any moment.

Owns resuming, and what is reported while it runs. Refuses to know artifacts, adapters and where a model came from. The same
code runs on a CPU and on a CUDA device, in one process and in many; the tests cover the CPU.

A step's result depends on its number, the weights before it and the seed alone: packs, learning rate and dropout are
functions of (rng_seed, step). So six steps are bitwise equal to three, a kill, and three more, in one process; several add in
another order than one, and what frozen blocks gave (frozen_blocks.py) is kept from the first pack a sample was in, which a
training that goes on later has not seen: both differ by rounding alone.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.events import Metric, Note, Progress
from tunesmith.model.checkpoint import Checkpoint, save_checkpoint
from tunesmith.protocols import EventSink
from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Samples
from tunesmith.training.checkpoints import newest_of, save_spread
from tunesmith.training.compiled import compiled_blocks
from tunesmith.training.disk_plan import training_disk_bytes
from tunesmith.training.forward import varlen_forward
from tunesmith.training.frozen_blocks import can_stand_apart, keep_frozen_blocks
from tunesmith.training.lockstep import LockstepStepper
from tunesmith.training.losses import Loss
from tunesmith.training.memory_plan import find_largest, plan_memory
from tunesmith.training.schedule import learning_rate_at, micro_batches
from tunesmith.training.sharding import shard_model
from tunesmith.training.sources import FixedSamples, Source
from tunesmith.training.step import Pace, Stepper, StepResult
from tunesmith.training.stopping import StopSignals
from tunesmith.types import Record

_AUTO_CHECKPOINT_SECONDS = 60.0
_STEPS_LOOKED_AT = 64  # before the first one, to say what sharing beginnings saves


class StepLoss(Record):
    """One line of losses.jsonl: the same on every run of the same machine."""

    step: int  # from 1
    loss: float  # mean per unit: a supervised token, a pair ...
    num_supervised: int
    measures: dict[str, float] | None = None  # what else the loss says, mean per unit


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves in memory; the model holds the new weights."""

    weights: dict[str, torch.Tensor]  # name -> fp32 master
    losses: list[StepLoss]
    num_trainable: int
    peak_memory_bytes: int
    tokens_per_second: float  # real tokens, steps of this process only; 0 where it had none to do


@dataclass(frozen=True)
class Places:
    """Where a training writes."""

    checkpoint_dir: Path
    metrics_path: Path
    events: EventSink


def train(
    model: PreTrainedModel,
    samples: Samples,
    section: Optimisation,
    *,
    learning_rate: float,
    pack_length: int,
    pace: Pace,
    checkpoint_dir: Path,
    metrics_path: Path,
    events: EventSink,
    loss: Loss,
    spread_over: torch.device | None = None,
) -> Trained:
    """Train the parameters of `model` that require a gradient, on the same samples in every epoch; see train_on."""
    source = FixedSamples(samples, pack_length, section)
    places = Places(checkpoint_dir, metrics_path, events)
    return train_on(
        model,
        source,
        section,
        learning_rate=learning_rate,
        pace=pace,
        places=places,
        loss=loss,
        spread_over=spread_over,
    )


def train_on(
    model: PreTrainedModel,
    source: Source,
    section: Optimisation,
    *,
    learning_rate: float,
    pace: Pace,
    places: Places,
    loss: Loss,
    spread_over: torch.device | None = None,
) -> Trained:
    """Train the parameters of `model` that require a gradient; continues from the newest whole checkpoint.

    spread_over: this rank's device, where the weights are to be spread over all ranks; the model, whole on every rank
    before, serves nothing else afterwards, and only the first rank gets the trained weights. None: every rank has all.

    The loss of a step is the sum over its units divided by their number, which is known before the first forward pass.
    Raises TrainingError on a loss that is not finite or exactly zero, naming rows and layer. On SIGINT and SIGTERM a
    checkpoint is written, then KeyboardInterrupt raised; several ranks do so together, at the end of the step. Where they
    stop together, for whichever reason, the first one raises it, and the others AgreedStop.
    """
    model.train()
    if pace.gradient_checkpointing:
        _recompute_activations(model, True)
    try:
        with varlen_forward(model), compiled_blocks(model, pace.compile_blocks):
            if spread_over is not None:
                shard_model(model, spread_over)
            with _Training(
                model, source, section, learning_rate, pace, places, loss, spread_over is not None
            ) as training:
                training.resume()
                training.run()
                return training.result()
    finally:
        if pace.gradient_checkpointing:
            _recompute_activations(model, False)
        model.eval()


def _recompute_activations(model: PreTrainedModel, on: bool) -> None:
    """transformers 5.20 renamed the switch; both names are in the range of versions we accept."""
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{prefix}_checkpointing_disable")()


class _Training:
    """State of one training between steps: `done` steps, their losses, the weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        source: Source,
        section: Optimisation,
        learning_rate: float,
        pace: Pace,
        places: Places,
        loss: Loss,
        is_spread: bool,
    ) -> None:
        self.source, self.section, self.pace, self.places = source, section, pace, places
        self.learning_rate, self.is_spread = learning_rate, is_spread
        kind = LockstepStepper if is_spread else Stepper
        self.stepper = kind(model, loss, section, pace, learning_rate=learning_rate)
        self.weights, self.ranks = self.stepper.weights, self.stepper.ranks
        self.events = places.events
        device = self.stepper.device
        self.cuda_devices = [device] if device.type == "cuda" else []
        self.num_steps = source.num_steps
        self.done = 0
        self.losses: list[StepLoss] = []
        self.tokens, self.seconds = 0, 0.0
        self.saved_at, self.saved_step = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._rng = torch.random.fork_rng(devices=self.cuda_devices)
        self._rng.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._rng.__exit__(*error)
        self.weights.close()

    def resume(self) -> None:
        """Take up the newest whole checkpoint, where there is one."""
        checkpoint, damaged = newest_of(
            self.places.checkpoint_dir, self.weights.shapes(), self.weights.blank, self.ranks
        )
        for message in damaged:
            self.events.emit(Note(level="warning", message=message))
        if checkpoint is None:
            return
        self.weights.restore(checkpoint.tensors)
        self.done = self.saved_step = checkpoint.step
        self.losses = [StepLoss.model_validate(row) for row in checkpoint.state["losses"]]
        self.events.emit(Note(message=f"training continues after step {self.done} of {self.num_steps}"))

    def run(self) -> None:
        """All steps that are left."""
        if self.done == 0 or self.cuda_devices:  # resumed on a CPU: what was planned ran
            self._plan_memory()
        self._keep_activations()
        self._note_sharing()
        self.places.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        self._progress({})
        try:
            with (
                self.places.metrics_path.open("a", encoding="utf-8") as log,
                StopSignals(alone=self.ranks.size == 1) as signals,
            ):
                while self.done < self.num_steps:
                    self._step(log.write)
                    log.flush()
                    if self.ranks.any(signals.asked):
                        self._save_before_stopping()
                        self.ranks.stop(KeyboardInterrupt())
                    if self._checkpoint_due():
                        self.save()
        except KeyboardInterrupt:
            if not self.is_spread:  # else the other ranks, who have parts of the weights, do not know of it
                self._save_before_stopping()
            raise

    def _save_before_stopping(self) -> None:
        if self.stepper.is_whole and self.done > self.saved_step and self.source.is_stopping_place(self.done):
            self.save()

    def _plan_memory(self) -> None:
        """Run the largest micro batch before the first step, say what it takes, and use the size that fits."""
        if not isinstance(self.source, FixedSamples):
            return
        samples, steps = self.source.samples, min(self.source.plan.steps_per_epoch, self.num_steps)
        if self.is_spread:
            return self._try_largest(self.source, steps)
        plan = plan_memory(
            self.stepper.model,
            samples,
            [self.source.take(step)[1] for step in range(steps)],
            self.pace.micro_batch_size,
            lambda members: self.stepper.rehearse(samples, members),
            count_rows=lambda members: self.stepper.batch(samples, members).input_ids.shape[1],
            drop_gradients=self.weights.drop_gradients,
            optimizer_bytes=8 * self.weights.num_trainable,
        )
        self.stepper.micro_batch_size = plan.micro_batch_size
        self.events.emit(Note(message=plan.sentence()))

    def _keep_activations(self) -> None:
        """Compute the blocks that never change apart, where a later epoch would do it again."""
        source, folder = self.source, self.places.checkpoint_dir
        if not self.pace.cache_activations or self.is_spread or not isinstance(source, FixedSamples):
            return
        if self.num_steps <= source.plan.steps_per_epoch or not can_stand_apart(self.stepper.model, source.samples):
            return
        checkpoints = training_disk_bytes(
            self.weights.num_trainable, keep_checkpoints=self.pace.keep_checkpoints, result_bytes=0
        )
        kept = keep_frozen_blocks(self.stepper.model, source.samples, folder, checkpoints)
        if isinstance(kept, str):
            self.events.emit(Note(level="warning", message=f"frozen blocks are computed in every epoch: {kept}"))
        else:
            self.stepper.below = kept
            self.events.emit(Note(message=kept.sentence()))

    def _try_largest(self, source: FixedSamples, steps: int) -> None:
        """Where weights are spread: the largest micro batch once, on all ranks together. No other size is looked for: one rank
        may have less memory than another, and all must make the same passes."""
        packs = [source.take(step)[1] for step in range(steps)]
        batches = [members for each in packs for members in micro_batches(each, self.stepper.micro_batch_size)]
        samples, stepper = source.samples, self.stepper
        largest = find_largest(batches, samples, lambda members: stepper.batch(samples, members).input_ids.shape[1])
        try:
            stepper.rehearse(samples, largest.members)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"a micro batch of {largest.num_tokens:,} tokens does not fit beside this rank's part of the weights",
                where="recipe.runtime",
                hint="set runtime.gradient_checkpointing: true, lower runtime.micro_batch_size or tokenize.pack_length, "
                "or use more devices",
            ) from error
        finally:
            self.weights.drop_gradients()
        peak = self._peak_memory() / 1e9
        message = f"the largest micro batch ({largest.num_tokens:,} tokens) was tried: {peak:.2f} GB on this rank"
        self.events.emit(Note(message=message))

    def _note_sharing(self) -> None:
        """Say what shared beginnings save, where they do and where that is known beforehand."""
        if not self.stepper.share_prefixes or not isinstance(self.source, FixedSamples):
            return
        steps_per_epoch = self.source.plan.steps_per_epoch
        steps = min(steps_per_epoch, _STEPS_LOOKED_AT)
        batches = [
            self.stepper.batch(samples, members)
            for samples, packs in map(self.source.take, range(steps))
            for members in micro_batches(packs, self.stepper.micro_batch_size)
        ]
        tokens = sum(batch.num_tokens for batch in batches)
        rows = sum(batch.input_ids.shape[1] for batch in batches)
        if tokens > rows:
            saved = f"{tokens:,} tokens are computed as {rows:,} ({tokens / rows:.2f}x)"
            scope = f"the first {steps} steps" if steps < steps_per_epoch else "an epoch"
            self.events.emit(Note(message=f"samples share beginnings: {saved} in {scope}"))

    def _step(self, write: Callable[[str], Any]) -> None:
        started = time.perf_counter()
        samples, packs = self.source.take(self.done)
        rate = learning_rate_at(
            self.done,
            self.num_steps,
            peak=self.learning_rate,
            schedule=self.section.lr_schedule,
            warmup_ratio=self.section.warmup_ratio,
            min_ratio=self.section.min_learning_rate_ratio,
        )
        result = self.stepper.take(samples, packs, self.done, rate)
        seconds = time.perf_counter() - started
        self.done += 1
        self.losses.append(
            StepLoss(
                step=self.done,
                loss=result.loss,
                num_supervised=result.num_supervised,
                measures=result.measures or None,
            )
        )
        self.seconds += seconds
        self.tokens += result.num_tokens
        self._report(write, result, rate, seconds)

    def _report(self, write: Callable[[str], Any], result: StepResult, rate: float, seconds: float) -> None:
        if not self.ranks.is_first:
            return
        values = {"loss": result.loss, "learning_rate": rate, "grad_norm": result.grad_norm}
        values |= {"tokens_per_second": round(result.num_tokens / seconds, 1), **result.measures}
        spent = {"seconds": round(seconds, 4), "peak_memory_bytes": self._peak_memory()}
        write(json.dumps({"step": self.done, **values, **spent}) + "\n")
        if self.done % self.pace.log_every_steps == 0 or self.done == self.num_steps:
            self.events.emit(Metric(step=self.done, values=values))
        self._progress({"loss": round(result.loss, 4), "tokens_per_second": round(self.tokens / self.seconds)})

    def _progress(self, detail: dict[str, float | int | str]) -> None:
        self.events.emit(Progress(task="train", done=self.done, total=self.num_steps, unit="steps", detail=detail))

    def _checkpoint_due(self) -> bool:
        if self.done == self.num_steps or not self.source.is_stopping_place(self.done):
            return False  # the stage writes the result itself
        every = self.pace.checkpoint_every_steps
        if every is not None:
            return self.done // every > self.saved_step // every  # the first stopping place after each `every` steps
        due = time.monotonic() - self.saved_at >= _AUTO_CHECKPOINT_SECONDS
        return self.ranks.from_first(lambda: due) if self.is_spread else due

    def save(self) -> None:
        """A checkpoint of everything `resume` needs."""
        folder, keep = self.places.checkpoint_dir, self.pace.keep_checkpoints
        state = {"losses": [loss.model_dump(exclude_none=True) for loss in self.losses]}
        if self.is_spread:
            save_spread(folder, self.done, self.weights.state(), state, keep=keep, ranks=self.ranks)
        elif self.ranks.is_first:
            save_checkpoint(folder, Checkpoint(self.done, self.weights.state(), state), keep=keep)
        self.saved_at, self.saved_step = time.monotonic(), self.done

    def _peak_memory(self) -> int:
        """Bytes: of the GPU where training runs on one, else the largest resident size of the process."""
        if self.stepper.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.stepper.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def result(self) -> Trained:
        return Trained(
            weights=self.weights.whole(keep=self.ranks.is_first or not self.is_spread),
            losses=self.losses,
            num_trainable=self.weights.num_trainable,
            peak_memory_bytes=self._peak_memory(),
            tokens_per_second=self.tokens / self.seconds if self.seconds else 0.0,
        )
