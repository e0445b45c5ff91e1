"""A preference training says once when the better answers lose probability themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith.events import Note
from tunesmith.training.falling import WatchedPairs
from tunesmith.training.objectives.preference import Pairs, dpo, ipo

PAIR = SimpleNamespace(samples=(0, 1))


class Scripted:
    """A loss over pairs whose log ratios are told beforehand."""

    may_be_zero = True

    def __init__(self) -> None:
        self.ratios = (0.0, 0.0)
        self.begun = 0

    def units(self, samples: Any, indices: Any) -> float:
        return 7.0

    def begin_step(self, samples: Any, indices: Any, measure: Any) -> None:
        self.begun += 1

    def __call__(self, head: Any, hidden: Any, batch: Any) -> Any:
        chosen, rejected = self.ratios
        return torch.zeros(()), {"accuracy": 1.0, "chosen_log_ratio": chosen, "rejected_log_ratio": rejected}


def told(sink: Any, steps: list[tuple[float, float]], batches: int = 1) -> list[str]:
    """Warnings of a training with these log ratios of chosen and rejected answers, step by step."""
    loss = Scripted()
    watched: Any = WatchedPairs(loss, sink)
    for ratios in steps:
        watched.begin_step(None, (), None)
        loss.ratios = ratios
        for _ in range(batches):
            assert watched(None, None, PAIR)[1]["accuracy"] == 1.0
    watched.begin_step(None, (), None)
    assert loss.begun == len(steps) + 1 and watched.units(None, ()) == 7.0
    return [event.message for event in sink.events if isinstance(event, Note) and event.level == "warning"]


def test_it_is_said_once_with_both_figures_and_what_to_do(sink: Any) -> None:
    falling = [(-step * 1.0, -step * 2.0) for step in range(30)]
    (message,) = told(sink, falling, batches=3)
    assert message == (
        "both answers lose probability: the chosen ones have 5.5 nats less than before alignment (mean of 10 steps), the "
        "rejected ones 11.0 less; raise align.beta or lower align.learning_rate"
    )


def test_a_rejected_answer_that_rises_is_not_said_to_fall(sink: Any) -> None:
    (message,) = told(sink, [(-6.0, 2.0)] * 10)
    assert message.startswith("the better answers lose probability") and "the rejected ones 2.0 more" in message


@pytest.mark.parametrize(
    "steps", [[(-4.9, -50.0)] * 40, [(-40.0, -40.0)] * 9, [(0.0, 0.0)] * 9 + [(-49.0, 0.0)] + [(0.0, 0.0)] * 9]
)
def test_less_than_five_nats_over_ten_steps_are_not_worth_a_word(sink: Any, steps: Any) -> None:
    assert told(sink, steps) == []


@pytest.mark.parametrize("beta", [0.1, 3.0])
def test_losses_with_a_reference_tell_how_far_answers_moved_in_nats_whatever_beta_is(beta: float) -> None:
    pairs = Pairs(
        chosen=torch.tensor([-10.0, -4.0]),
        rejected=torch.tensor([-20.0, -8.0]),
        chosen_lengths=torch.tensor([5.0, 2.0]),
        rejected_lengths=torch.tensor([4.0, 8.0]),
        reference_chosen=torch.tensor([-7.0, -3.0]),
        reference_rejected=torch.tensor([-11.0, -9.0]),
    )
    for sums in (dpo(pairs, beta=beta, label_smoothing=0.0).sums, ipo(pairs, beta=beta).sums):
        assert (float(sums["chosen_log_ratio"]), float(sums["rejected_log_ratio"])) == (-4.0, -8.0)
