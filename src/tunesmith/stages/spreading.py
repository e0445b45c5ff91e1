"""Weights spread over ranks, as a stage sees it: where its model is loaded, and a whole model again at the end.

Wiring only: how weights are spread is training/sharding.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from tunesmith.errors import RecipeError
from tunesmith.events import Note
from tunesmith.protocols import EventSink
from tunesmith.recipe import Runtime
from tunesmith.stages.pretrain_weights import put_weights
from tunesmith.training.ranks import Ranks
from tunesmith.training.sharding import choose_sharding


@dataclass(frozen=True)
class Spreading:
    """runtime.shard_weights for one stage."""

    setting: bool | Literal["auto"]
    device: torch.device  # of this rank
    quantised: bool

    @property
    def loading_device(self) -> str:
        """Where the whole model is loaded: main memory where it may have to be spread."""
        may_be_spread = Ranks.current().size > 1 and self.setting is not False and not self.quantised
        return "cpu" if may_be_spread else str(self.device)

    def settle(self, model: PreTrainedModel, events: EventSink) -> torch.device | None:
        """The device to spread a loaded model over; None, and the model is moved to its device, where it stays whole."""
        if choose_sharding(self.setting, model, self.device, quantised=self.quantised):
            events.emit(Note(message=f"weights are spread over {Ranks.current().size} processes"))
            return self.device
        if model.device.type != self.device.type:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return None


def spread_setting(runtime: Runtime, on_policy: bool) -> bool | Literal["auto"]:
    """runtime.shard_weights for a stage. RecipeError where a model that draws answers is to be spread."""
    if on_policy and runtime.shard_weights is True:
        raise RecipeError(
            "a model that draws its own answers cannot be spread over processes: each token would gather all weights",
            where="recipe.runtime.shard_weights",
            hint="set it to auto; align on compared answers (dpo and its kin) spreads weights",
        )
    return False if on_policy else runtime.shard_weights


def whole_again(load: Callable[[], PreTrainedModel], weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A model as it was before it was spread, with the weights it has now; in eval mode, where `load` puts it."""
    model = load()
    put_weights(model, weights)
    return model.eval()
