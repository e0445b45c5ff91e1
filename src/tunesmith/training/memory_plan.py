"""How much memory a training takes: measured before step 1, by running its largest micro batch forward and backward.

Owns the choice of that micro batch, the measurement, the split of what was measured, and the search for a micro batch
that fits. Refuses to know losses, optimisers and recipes: the caller runs a micro batch and forgets its gradients.

The tokens of an optimiser step never change here: a smaller micro batch only means more of them in a step.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import nn

from tunesmith.errors import TrainingError
from tunesmith.training.batches import Samples
from tunesmith.training.memory_bytes import (
    Measured,
    available_bytes,
    forget_peak_resident,
    master_bytes,
    measure_bytes,
    peak_resident,
    weight_bytes,
)
from tunesmith.training.schedule import Pack, micro_batches

_PART = 4  # the measurement that tells what a token costs runs a quarter of the largest micro batch
_LEAST_PART = 16  # of one that is less than a sixteenth the figures say nothing of the whole
_LAID_OUT = 256  # micro batches whose shared beginnings are looked at, those with the most tokens first


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, at the largest micro batch of the run with the gradients of earlier ones in place."""

    device: str
    micro_batch_size: int  # packs per forward pass that fit: the one asked for, or a smaller one
    asked_micro_batch_size: int | Literal["auto"]
    num_tokens: int  # of the largest micro batch
    num_rows: int  # what is computed for them: fewer where beginnings are shared
    weights_bytes: int  # parameters and buffers
    gradient_bytes: int
    optimizer_bytes: int  # fp32 masters and moments
    activation_bytes: int  # of the largest micro batch
    buffer_bytes: int  # what does not grow with rows: the chunk of logits, work space
    other_bytes: int  # Python, libraries and their own work space, gaps between blocks
    available_bytes: int  # free at the dry run, what training holds already included
    seconds: float  # what the dry run took

    @property
    def peak_bytes(self) -> int:
        """All together."""
        return (
            self.weights_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.buffer_bytes
            + self.other_bytes
        )

    @property
    def activation_bytes_per_1k_tokens(self) -> int:
        """Of 1,000 rows of the forward pass."""
        return round(1000 * self.activation_bytes / max(self.num_rows, 1))

    def sentence(self) -> str:
        """The plan in one line, for a Note."""
        shared = f", computed as {self.num_rows:,}" if self.num_rows < self.num_tokens else ""
        size = _times(self.micro_batch_size)
        if self.asked_micro_batch_size not in ("auto", self.micro_batch_size):
            size += f" (micro_batch_size {self.asked_micro_batch_size} does not fit)"
        parts = [
            f"weights {_gb(self.weights_bytes)}",
            f"gradients {_gb(self.gradient_bytes)}",
            f"optimiser {_gb(self.optimizer_bytes)}",
            f"activations {_gb(self.activation_bytes)} ({_gb(self.activation_bytes_per_1k_tokens)} per 1,000 tokens)",
            f"head and buffers {_gb(self.buffer_bytes)}",
            f"other {_gb(self.other_bytes)}",
        ]
        return (
            f"memory, measured on the largest micro batch ({size}, {self.num_tokens:,} tokens{shared}): "
            f"{_gb(self.peak_bytes)} of {_gb(self.available_bytes)} on {self.device} = {', '.join(parts)}"
        )


@dataclass(frozen=True)
class Largest:
    """The micro batch that takes the most memory."""

    members: Pack
    num_tokens: int
    num_rows: int


def plan_memory(
    model: nn.Module,
    samples: Samples,
    steps: Sequence[Sequence[Pack]],
    micro_batch_size: int | Literal["auto"],
    run_micro_batch: Callable[[Pack], Any],
    *,
    count_rows: Callable[[Pack], int],
    drop_gradients: Callable[[], Any],
    optimizer_bytes: int,
) -> MemoryPlan:
    """Run the largest micro batch of `steps` forward and backward; change no weight and leave no gradient.

    steps: packs of every planned step (an epoch's are enough). auto: as many packs as fit on a GPU, 1 on a CPU, which
    a usual pack fills. run_micro_batch: forward and backward of these samples, gradients left where they gather.
    count_rows: rows of its forward pass. optimizer_bytes: what the optimiser will allocate at its first step.

    What does not fit is halved until it does. TrainingError where a single pack does not.
    """
    search = _Search(model, samples, steps, run_micro_batch, count_rows, drop_gradients, optimizer_bytes)
    devices = [search.device] if search.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        return search.run(micro_batch_size)


def find_largest(batches: Sequence[Pack], samples: Samples, count_rows: Callable[[Pack], int]) -> Largest:
    """The micro batch with the most rows; of equal ones the first.

    A micro batch has no more rows than tokens, so those with fewer tokens than the best has rows need no look; where
    beginnings are shared, the 256 with the most tokens are looked at.
    """
    tokens = [int(samples.lengths[list(members)].sum()) for members in batches]
    best: Largest | None = None
    for index in sorted(range(len(batches)), key=lambda index: (-tokens[index], index))[:_LAID_OUT]:
        if best is not None and tokens[index] <= best.num_rows:
            break
        rows = count_rows(batches[index])
        if best is None or rows > best.num_rows:
            best = Largest(tuple(batches[index]), tokens[index], rows)
    if best is None:
        raise TrainingError("training had no step to take", where="recipe.train")
    return best


def fills_with_one_pack(device: torch.device) -> bool:
    """Whether more than one pack at a time gains nothing: a usual pack keeps every core of a CPU busy."""
    return device.type == "cpu"


class _Search:
    """One dry run; sizes are tried until one fits."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        steps: Sequence[Sequence[Pack]],
        run_micro_batch: Callable[[Pack], Any],
        count_rows: Callable[[Pack], int],
        drop_gradients: Callable[[], Any],
        optimizer_bytes: int,
    ) -> None:
        self.model, self.samples, self.steps = model, samples, [tuple(packs) for packs in steps if len(packs)]
        self.run_micro_batch, self.count_rows, self.drop_gradients = run_micro_batch, count_rows, drop_gradients
        self.device = next(model.parameters()).device
        self.weights, self.masters = weight_bytes(model), master_bytes(model)
        self.moments = optimizer_bytes
        forget_peak_resident()
        self.held = self._held_bytes()
        self.available = available_bytes(self.device)
        self.started = time.monotonic()

    def run(self, asked: int | Literal["auto"]) -> MemoryPlan:
        """The plan of the first size that fits."""
        most = max((len(packs) for packs in self.steps), default=1)
        size = 1 if asked == "auto" else max(1, min(asked, most))
        plan = self._try(size, asked)
        if asked == "auto" and plan is not None and not fills_with_one_pack(self.device):
            larger = self._predict(plan, most)
            while larger > 1:
                found = self._try(larger, asked)
                if found is not None:
                    return found
                larger = _balanced(math.ceil(larger / 2), most)
        while plan is None and size > 1:
            size = math.ceil(size / 2)
            plan = self._try(size, asked)
        if plan is None:
            raise self._too_large()
        return plan

    def _try(self, size: int, asked: int | Literal["auto"]) -> MemoryPlan | None:
        """The plan of this size, None where it does not fit."""
        batches = [members for packs in self.steps for members in micro_batches(packs, size)]
        largest = find_largest(batches, self.samples, self.count_rows)
        part = self._part_of(largest)
        measured = self._measure(largest, part)
        if measured is None:
            return None
        gradients, small, whole = measured
        per_row = 0.0
        if small is not None and part is not None and largest.num_rows > part.num_rows:
            per_row = max(whole - small, 0) / (largest.num_rows - part.num_rows)
        activations = min(round(per_row * largest.num_rows), whole) if per_row else whole
        plan = MemoryPlan(
            device=str(self.device),
            micro_batch_size=size,
            asked_micro_batch_size=asked,
            num_tokens=largest.num_tokens,
            num_rows=largest.num_rows,
            weights_bytes=self.weights,
            gradient_bytes=gradients,
            optimizer_bytes=self.masters + self.moments,
            activation_bytes=activations,
            buffer_bytes=whole - activations,
            other_bytes=self._other_bytes(gradients + whole),
            available_bytes=self.held + self.available,
            seconds=time.monotonic() - self.started,
        )
        return plan if plan.peak_bytes <= plan.available_bytes else None

    def _measure(self, largest: Largest, part: Largest | None) -> tuple[int, int | None, int] | None:
        """(gradients, peak of the part, peak of the largest) in bytes, the peaks above weights and gradients.

        None where memory ran out, or on a CPU surely would: there the kernel ends the process, so a part is run first.
        """
        small: Measured | None = None
        try:
            formed = self._measured(self._shortest())  # gradients are formed, at little cost
            if part is not None:
                small = self._measured(part.members)
                if self.device.type == "cpu":
                    grown = max(small.peak, peak_resident() - self.held - formed.kept)
                    if formed.kept + self.moments + grown * largest.num_rows / part.num_rows > self.available:
                        return None
            whole = self._measured(largest.members)
        except torch.OutOfMemoryError:
            return None
        finally:
            self.drop_gradients()
            self._let_go()
        return formed.kept, None if small is None else small.peak, whole.peak

    def _shortest(self) -> Pack:
        """The group with the fewest rows."""
        return tuple(self.samples.groups[int(self.samples.group_lengths.argmin())])

    def _measured(self, members: Pack) -> Measured:
        return measure_bytes(self.device, lambda: self.run_micro_batch(members))

    def _part_of(self, largest: Largest) -> Largest | None:
        """About a quarter of it, in whole groups, or the group that comes nearest to that. None where none comes near: what
        a few tokens take says nothing of thousands, since some of it is the same for any number of tokens."""
        members = set(largest.members)
        groups = [
            (group, int(rows)) for group, rows in zip(self.samples.groups, self.samples.group_lengths, strict=True)
        ]
        inside = sorted((each for each in groups if each[0][0] in members), key=lambda each: each[1])
        chosen: list[int] = []
        rows = 0
        for group, more in inside:
            chosen += group
            rows += more
            if rows * _PART >= largest.num_rows:
                break
        if 2 * rows > largest.num_rows:
            shorter = (each for each in groups if 2 * each[1] <= largest.num_rows)
            nearest = min(shorter, key=lambda each: abs(_PART * each[1] - largest.num_rows), default=((), 0))
            chosen, rows = list(nearest[0]), nearest[1]
        if rows * _LEAST_PART < largest.num_rows:
            return None
        part = tuple(chosen)
        return Largest(part, int(self.samples.lengths[chosen].sum()), self.count_rows(part))

    def _predict(self, plan: MemoryPlan, most: int) -> int:
        """Packs that should fit, by what a pack was measured to take; spread evenly over the step's micro batches."""
        room = plan.available_bytes - plan.peak_bytes + plan.activation_bytes
        fitting = max(int(room / max(plan.activation_bytes, 1)), 1)
        return _balanced(min(fitting, most), most)

    def _other_bytes(self, counted: int) -> int:
        """What is held beside weights and what the allocator counted. On a CPU libraries take memory of their own, and
        freed blocks leave gaps: bf16 training of 135 M weights was resident with two thirds more than its tensors."""
        known = self.weights + self.masters
        resident = peak_resident() - counted if self.device.type == "cpu" else 0
        return max(self.held - known, resident - known, 0)

    def _held_bytes(self) -> int:
        """What is held before the dry run, weights included."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return psutil.Process().memory_info().rss

    def _let_go(self) -> None:
        if self.device.type == "cuda":
            gc.collect()  # a failed pass may lie in a cycle with its own error
            torch.cuda.empty_cache()

    def _too_large(self) -> TrainingError:
        batches = [members for packs in self.steps for members in micro_batches(packs, 1)]
        largest = find_largest(batches, self.samples, self.count_rows)
        fixed = self.weights + self.masters + self.moments
        return TrainingError(
            f"a pack of {largest.num_tokens:,} tokens does not fit: weights and optimiser take {_gb(fixed)}, and "
            f"{_gb(self.available)} are free on {self.device} beside what is loaded",
            where="recipe.runtime",
            hint="set runtime.gradient_checkpointing: true, lower tokenize.pack_length (and max_length), "
            "or train less: train.method: lora, a smaller base model",
        )


def _balanced(size: int, most: int) -> int:
    """The smallest size that needs no more forward passes than `size` for a step of `most` packs."""
    return math.ceil(most / math.ceil(most / max(size, 1)))


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 5e6 else f"{size_bytes / 1e6:.1f} MB"


def _times(count: int) -> str:
    return "1 pack" if count == 1 else f"{count} packs"
