"""Where the samples of each optimiser step come from: the same ones in every epoch, or new ones every few steps."""

from __future__ import annotations

from typing import Protocol

from tunesmith.recipe import Optimisation
from tunesmith.training.batches import Samples
from tunesmith.training.schedule import Pack, StepPlan


class Source(Protocol):
    """Samples by step. Any step can be asked for that follows a stopping place or the step asked for before."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        ...

    def take(self, step: int) -> tuple[Samples, tuple[Pack, ...]]:
        """What step 0, 1, ... trains on: packs of indices into the samples. Whole groups only."""
        ...

    def is_stopping_place(self, step: int) -> bool:
        """Whether a training that is resumed at this step needs nothing but weights and the step's number."""
        ...


class FixedSamples:
    """All samples in every epoch, packed anew each time."""

    def __init__(self, samples: Samples, pack_length: int, section: Optimisation) -> None:
        self.samples = samples
        self.plan = StepPlan(
            lengths=samples.group_lengths,
            pack_length=pack_length,
            global_batch_size=section.global_batch_size,
            num_epochs=section.num_epochs,
            max_steps=section.max_steps,
            rng_seed=section.rng_seed,
        )
        self.num_steps = self.plan.num_steps

    def take(self, step: int) -> tuple[Samples, tuple[Pack, ...]]:
        return self.samples, spell_out(self.samples, self.plan.packs(step))

    def is_stopping_place(self, step: int) -> bool:
        return True


def spell_out(samples: Samples, packs: tuple[Pack, ...]) -> tuple[Pack, ...]:
    """Packs of groups as packs of samples."""
    if samples.group_sizes is None:
        return packs
    return tuple(tuple(index for group in pack for index in samples.groups[group]) for pack in packs)
