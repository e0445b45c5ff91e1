"""What late stages would refuse, asked before the first stage of a run: not after hours and money.

Owns the questions that can be answered without an artifact; each answer is that of the stage's own code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from tunesmith.chat.conditions import with_condition
from tunesmith.model.catalog import base_model_path, folder_at_hand
from tunesmith.model.quantised import check_quantisation
from tunesmith.recipe import Recipe
from tunesmith.stages.processes import check_devices
from tunesmith.stages.tokenize import template_of
from tunesmith.stages.train import choose_device
from tunesmith.types import Artifact

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


def check_condition(recipe: Recipe, files: Mapping[str, Path], base_model: Artifact | None) -> None:
    """RecipeError where the chat template of the training does not write `evaluate.condition`.

    files: those that the tokenize section names. base_model: its artifact, None before there is one: the model's own
    template is then asked where it is at hand, and not asked where it has to be fetched first.
    """
    name, section = recipe.base_model, recipe.tokenize
    folder = base_model_path(base_model) if base_model else folder_at_hand(name.name, name.revision)
    if recipe.evaluate is None or (section.chat_template == "auto" and folder is None):
        return
    template = template_of(section, files, folder or Path())
    with_condition((), recipe.evaluate.condition, template=template, where="recipe.evaluate.condition")
