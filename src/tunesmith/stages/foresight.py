"""What the stages that train would refuse on this machine, asked before the first stage of a run: not after hours and money.

Owns the questions that can be answered without an artifact; each answer is that of the stage's own code.
"""

from __future__ import annotations

from collections.abc import Collection

from tunesmith.model.quantised import check_quantisation
from tunesmith.recipe import Recipe
from tunesmith.stages.processes import check_devices
from tunesmith.stages.train import choose_device

_ON_THE_DEVICE = frozenset({"pretrain", "train", "prefer", "reward_model", "align", "evaluate"})
_ON_SEVERAL_DEVICES = frozenset({"pretrain", "train", "reward_model", "align"})
_ON_THE_BASE_IN_4_BITS = frozenset({"train", "reward_model", "align"})


def check_machine(recipe: Recipe, stages: Collection[str]) -> None:
    """stages: the names of those that have something to do. RecipeError where the device is not there, cannot do what
    `train.method` needs, or is to be shared by several processes; MissingExtra where a package is missing."""
    if not _ON_SEVERAL_DEVICES.isdisjoint(stages):
        check_devices(recipe.runtime)
    if not _ON_THE_DEVICE.isdisjoint(stages):
        device = choose_device(recipe.runtime.device)
        if recipe.train.method == "qlora" and not _ON_THE_BASE_IN_4_BITS.isdisjoint(stages):
            check_quantisation(device)
