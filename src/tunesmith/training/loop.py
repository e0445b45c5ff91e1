"""The training loop: packs in, changed weights out, and a checkpoint to continue from at any moment.

Owns the order of a step (forward, backward, clip, AdamW), resuming, and what is reported while it runs. Refuses to know
artifacts, adapters and where a model came from. The same code runs on a CPU and on a CUDA device; the tests cover the CPU.

A step's result depends on its number, the weights before it and the seed alone: packs, learning rate and dropout are
functions of (rng_seed, step). So six steps are bitwise equal to three, a kill, and three more.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.events import Metric, Note, Progress
from tunesmith.model.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from tunesmith.protocols import EventSink
from tunesmith.recipe import Train
from tunesmith.training.batches import Batch, Samples, build_batch
from tunesmith.training.losses import LOSSES, Loss
from tunesmith.training.probing import draws_dropout, hidden_states, output_head, refuse_loss, varlen_forward
from tunesmith.training.schedule import Pack, StepPlan, learning_rate_at, micro_batches
from tunesmith.training.weights import TrainableWeights
from tunesmith.types import Record

_AUTO_CHECKPOINT_SECONDS = 60.0
_STEPS_LOOKED_AT = 64  # before the first one, to say what sharing beginnings saves


class StepLoss(Record):
    """One line of losses.jsonl: the same on every run of the same machine."""

    step: int  # from 1
    loss: float  # mean over the supervised tokens of the step
    num_supervised: int


@dataclass(frozen=True)
class Pace:
    """What changes speed and memory, and no result beyond rounding."""

    micro_batch_size: int  # packs per forward pass
    checkpoint_every_steps: int | None  # None: about once a minute
    keep_checkpoints: int
    log_every_steps: int
    gradient_checkpointing: bool
    share_prefixes: bool


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves in memory; the model holds the new weights."""

    weights: dict[str, torch.Tensor]  # name -> fp32 master
    losses: list[StepLoss]
    num_trainable: int
    peak_memory_bytes: int
    tokens_per_second: float  # real tokens, steps of this process only; 0 where it had none to do


def train(
    model: PreTrainedModel,
    samples: Samples,
    section: Train,
    *,
    learning_rate: float,
    pack_length: int,
    pace: Pace,
    checkpoint_dir: Path,
    metrics_path: Path,
    events: EventSink,
) -> Trained:
    """Train the parameters of `model` that require a gradient; continues from the newest whole checkpoint.

    The loss of a step is the sum over its supervised tokens divided by their number, which is known before the first
    forward pass. Raises TrainingError on a loss that is not finite or exactly zero, naming rows and layer.
    On KeyboardInterrupt a checkpoint is written first.
    """
    training = _Training(
        model, samples, section, learning_rate, pack_length, pace, checkpoint_dir, metrics_path, events
    )
    model.train()
    if pace.gradient_checkpointing:
        _recompute_activations(model, True)
    try:
        with varlen_forward(model), torch.random.fork_rng(devices=training.cuda_devices):
            training.resume()
            training.run()
    finally:
        if pace.gradient_checkpointing:
            _recompute_activations(model, False)
        model.eval()
    return training.result()


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
        samples: Samples,
        section: Train,
        learning_rate: float,
        pack_length: int,
        pace: Pace,
        checkpoint_dir: Path,
        metrics_path: Path,
        events: EventSink,
    ) -> None:
        self.model, self.samples, self.section, self.pace, self.events = model, samples, section, pace, events
        self.learning_rate = learning_rate
        self.checkpoint_dir, self.metrics_path = checkpoint_dir, metrics_path
        self.device = next(model.parameters()).device
        self.cuda_devices = [self.device] if self.device.type == "cuda" else []
        self.loss: Loss = LOSSES.load(section.loss, where="recipe.train.loss")
        self.plan = StepPlan(
            lengths=samples.lengths,
            pack_length=pack_length,
            global_batch_size=section.global_batch_size,
            num_epochs=section.num_epochs,
            max_steps=section.max_steps,
            rng_seed=section.rng_seed,
        )
        self.num_steps = self.plan.num_steps
        self.share_prefixes = pace.share_prefixes and not draws_dropout(model)
        self.weights = TrainableWeights(
            model,
            learning_rate=learning_rate,
            betas=(section.adam_beta1, section.adam_beta2),
            weight_decay=section.weight_decay,
        )
        self.done = 0
        self.losses: list[StepLoss] = []
        self.whole = True  # False while the weights are between two steps
        self.tokens, self.seconds = 0, 0.0
        self.saved_at, self.saved_step = time.monotonic(), 0

    def resume(self) -> None:
        """Take up the newest whole checkpoint, where there is one."""
        checkpoint, damaged = newest_checkpoint(self.checkpoint_dir)
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
        self._note_sharing()
        self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        self._progress({})
        try:
            with self.metrics_path.open("a", encoding="utf-8") as log:
                while self.done < self.num_steps:
                    started = time.perf_counter()
                    loss, rate, norm, tokens = self._step(self.done)
                    self.seconds += time.perf_counter() - started
                    self.tokens += tokens
                    self._report(log.write, loss, rate, norm, tokens / (time.perf_counter() - started))
                    log.flush()
                    if self._checkpoint_due():
                        self.save()
        except KeyboardInterrupt:
            if self.whole and self.done > self.saved_step:
                self.save()
            raise

    def _note_sharing(self) -> None:
        """Say what shared beginnings save, where they do."""
        if not self.share_prefixes:
            return
        size = self.pace.micro_batch_size
        batches = [self._batch(each) for step in self._first_steps() for each in micro_batches(step, size)]
        tokens = sum(batch.num_tokens for batch in batches)
        rows = sum(batch.input_ids.shape[1] for batch in batches)
        if tokens > rows:
            saved = f"{tokens:,} tokens are computed as {rows:,} ({tokens / rows:.2f}x)"
            steps = min(self.plan.steps_per_epoch, _STEPS_LOOKED_AT)
            scope = f"the first {steps} steps" if steps < self.plan.steps_per_epoch else "an epoch"
            self.events.emit(Note(message=f"samples share beginnings: {saved} in {scope}"))

    def _first_steps(self) -> list[tuple[Pack, ...]]:
        return [self.plan.packs(step) for step in range(min(self.plan.steps_per_epoch, _STEPS_LOOKED_AT))]

    def _step(self, step: int) -> tuple[StepLoss, float, float, int]:
        """One optimiser step: (loss, learning rate, gradient norm, real tokens)."""
        torch.manual_seed(self.section.rng_seed * 1_000_003 + step)  # dropout; forked, so nobody else's draws change
        packs = self.plan.packs(step)
        indices = [index for pack in packs for index in pack]
        count = int(self.samples.num_targets[indices].sum())
        total, tokens = 0.0, 0
        self.weights.drop_gradients()
        for members in micro_batches(packs, self.pace.micro_batch_size):
            batch = self._batch(members)
            total += self._forward_backward(batch, count, step)
            tokens += batch.num_tokens
        loss = StepLoss(step=step + 1, loss=total / count, num_supervised=count)
        norm = self.weights.clip(self.section.max_grad_norm)
        if not math.isfinite(norm):
            bad = self.weights.bad_gradients()
            what = f"the gradient of {bad[-1] if bad else 'the weights'} is not finite (loss {loss.loss:.4g})"
            raise self._refusal(self._batch(indices), step, what)
        rate = learning_rate_at(
            step,
            self.num_steps,
            peak=self.learning_rate,
            schedule=self.section.lr_schedule,
            warmup_ratio=self.section.warmup_ratio,
        )
        self.whole = False
        self.weights.step(rate)
        self.losses.append(loss)
        self.done = step + 1
        self.whole = True
        return loss, rate, norm, tokens

    def _batch(self, members: Sequence[int]) -> Batch:
        return build_batch(self.samples, members, self.device, share_prefixes=self.share_prefixes)

    def _forward_backward(self, batch: Batch, count: int, step: int) -> float:
        """Adds this batch's share of the gradient; returns its summed loss."""
        hidden = hidden_states(self.model, batch)
        weight, bias = output_head(self.model)
        summed = self.loss(hidden[batch.rows], weight, bias, batch.targets)
        value = float(summed.detach())
        if not math.isfinite(value):
            raise self._refusal(batch, step, f"the loss is {value}")
        if value == 0.0:
            raise self._refusal(batch, step, "the loss is exactly 0, so nothing can be learnt")
        (summed / count).backward()
        return value

    def _refusal(self, batch: Batch, step: int, what: str) -> TrainingError:
        rows = [self.samples.ids[index] for index in batch.samples]
        return refuse_loss(self.model, batch, rows, step, what)

    def _report(self, write: Callable[[str], Any], loss: StepLoss, rate: float, norm: float, speed: float) -> None:
        values = {"loss": loss.loss, "learning_rate": rate, "grad_norm": norm, "tokens_per_second": round(speed, 1)}
        line = {"step": loss.step, **values, "peak_memory_bytes": self._peak_memory()}
        write(json.dumps(line) + "\n")
        if loss.step % self.pace.log_every_steps == 0 or loss.step == self.num_steps:
            self.events.emit(Metric(step=loss.step, values=values))
        self._progress({"loss": round(loss.loss, 4), "tokens_per_second": round(self.tokens / self.seconds)})

    def _progress(self, detail: dict[str, float | int | str]) -> None:
        self.events.emit(Progress(task="train", done=self.done, total=self.num_steps, unit="steps", detail=detail))

    def _checkpoint_due(self) -> bool:
        if self.done == self.num_steps:
            return False  # the stage writes the result itself
        every = self.pace.checkpoint_every_steps
        if every is not None:
            return self.done % every == 0
        return time.monotonic() - self.saved_at >= _AUTO_CHECKPOINT_SECONDS

    def save(self) -> None:
        """A checkpoint of everything `resume` needs."""
        state = {"losses": [loss.model_dump() for loss in self.losses]}
        checkpoint = Checkpoint(self.done, self.weights.state(), state)
        save_checkpoint(self.checkpoint_dir, checkpoint, keep=self.pace.keep_checkpoints)
        self.saved_at, self.saved_step = time.monotonic(), self.done

    def _peak_memory(self) -> int:
        """Bytes: of the GPU where training runs on one, else the largest resident size of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def result(self) -> Trained:
        return Trained(
            weights=dict(self.weights.masters),
            losses=self.losses,
            num_trainable=self.weights.num_trainable,
            peak_memory_bytes=self._peak_memory(),
            tokens_per_second=self.tokens / self.seconds if self.seconds else 0.0,
        )
