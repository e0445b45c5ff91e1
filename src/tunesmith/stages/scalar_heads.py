"""Scalar heads in the stage align: the recipe's own reward model, and where PPO's value function begins.

Owns where a head is looked for. Refuses to know what is made of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tunesmith.events import Note
from tunesmith.model.value_head import VALUE_HEAD, ValueHead, load_value_head, new_value_head
from tunesmith.protocols import EventSink
from tunesmith.recipe.align import Align
from tunesmith.recipe.rewards import RewardModelOptions, RewardOptions, is_own_reward_model
from tunesmith.types import Inputs

OWN = "reward_model"


def with_own_reward_model(rewards: Sequence[RewardOptions], inputs: Inputs) -> list[RewardOptions]:
    """The rewards, those of the recipe's own reward model with the folder that its stage made."""
    return [
        each.model_copy(update={"model": str(inputs[OWN].path)}) if is_own_reward_model(each) else each
        for each in rewards
    ]


def first_value_head(section: Align, inputs: Inputs, base_dir: Path, width: int, events: EventSink) -> ValueHead:
    """Where PPO's value function begins; see `align.value_function`. ModelError for a head of another width."""
    if section.value_function == "reward_model":
        chosen = next(
            each
            for each in with_own_reward_model(section.rewards, inputs)
            if isinstance(each, RewardModelOptions) and each.model is not None
        )
        folder = inputs.files.get(str(chosen.model), Path(str(chosen.model)))
        head = load_value_head(folder, width)
        with torch.no_grad():  # what is earned is the weighted score
            head.weight.mul_(chosen.weight)
            head.bias.mul_(chosen.weight)
        return head
    if section.value_function == "auto" and (base_dir / VALUE_HEAD).is_file():
        events.emit(Note(message="the value function begins where the PPO before left it"))
        return load_value_head(base_dir, width)
    return new_value_head(width, section.rng_seed)
