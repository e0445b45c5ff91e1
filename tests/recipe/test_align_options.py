"""An option that the named loss does not read is an error that names the losses that do."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.recipe import Train
from tunesmith.recipe.align import ON_POLICY, Align

ON_REWARDS = {"rewards": ["exact"]}


def problem(**options: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Align.model_validate(options)
    (error,) = caught.value.errors()
    return str(error["msg"])


@pytest.mark.parametrize(
    ("loss", "option", "value", "readers"),
    [
        ("ipo", "label_smoothing", 0.1, "dpo, simpo"),
        ("dpo", "simpo_gamma", 0.1, "simpo"),
        ("dpo", "desirable_weight", 2, "kto"),
        ("kto", "clip_high", 0.3, "grpo, rloo, ppo"),
        ("dpo", "stop", ["x"], "grpo, rloo, ppo"),
        ("orpo", "normalisation", "token", "grpo, ppo"),
        ("grpo", "beta", 0.5, "dpo, ipo, orpo, simpo, kto"),
        ("grpo", "gae_lambda", 0.5, "ppo"),
        ("rloo", "advantage_scale", "none", "grpo"),
        ("ppo", "global_batch_size", 4, "dpo, ipo, orpo, simpo, kto"),
        ("ppo", "ratio_level", "sequence_mean", "grpo"),
    ],
)
def test_an_option_that_the_loss_does_not_read_is_refused_with_the_losses_that_do(
    loss: str, option: str, value: Any, readers: str
) -> None:
    rewards = ON_REWARDS if loss in ON_POLICY else {}
    assert f"the loss '{loss}' does not read `{option}`, which is for {readers}:" in problem(
        loss=loss, **rewards, **{option: value}
    )
    default = Align.model_fields[option].default
    assert Align.model_validate({"loss": loss, **rewards, option: default}).loss == loss, "its default says nothing"
    reader = readers.split(", ")[0]
    rewards = ON_REWARDS if reader in ON_POLICY else {}
    assert Align.model_validate({"loss": reader, **rewards, option: value}).loss == reader


def test_a_cap_below_the_clip_is_refused() -> None:
    assert "`ratio_cap: 1.2` is not above 1 + clip_high = 1.3" in problem(
        loss="grpo", ratio_cap=1.2, clip_high=0.3, **ON_REWARDS
    )


def test_a_constant_rate_falls_to_nothing_else() -> None:
    with pytest.raises(ValidationError, match="`lr_schedule: constant` does not fall"):
        Train(lr_schedule="constant", min_learning_rate_ratio=0.1)


def test_stop_is_a_list_or_one_string_and_none_is_empty() -> None:
    assert Align.model_validate({"loss": "grpo", "stop": ', "reply"', **ON_REWARDS}).stop == (', "reply"',)
    assert "at least 1 character" in problem(loss="grpo", stop=["}", ""], **ON_REWARDS)
