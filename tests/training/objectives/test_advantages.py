"""Advantages of groups and of a value function: by hand, against plain loops and TRL's figures."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.training.objectives.advantages import gae, grpo_advantages, rloo_advantages, token_rewards, whiten

NAN = float("nan")
REWARDS = torch.tensor([[1.0, 2, 3, 6], [0.5, 0.5, 0.5, 0.5], [NAN, 1, 0, 2], [NAN, NAN, NAN, 1]], dtype=torch.float64)


def test_group_advantages_are_trl_s_and_an_unscored_answer_is_in_no_mean() -> None:
    """TRL 1.16.0, scale_rewards group, none and batch."""
    expected = {
        "group": [
            -0.9257772446,
            -0.4628886223,
            0.0,
            1.3886658669,
            0,
            0,
            0,
            0,
            0,
            0,
            -0.99990001,
            0.99990001,
            0,
            0,
            0,
            0,
        ],
        "none": [-2, -1, 0, 3, 0, 0, 0, 0, 0, 0, -1, 1, 0, 0, 0, 0],
        "batch": [-1.2109868127, -0.6054934064, 0, 1.8164802191, *[0] * 6, -0.6054934064, 0.6054934064, 0, 0, 0, 0],
    }
    for scale, values in expected.items():
        found = grpo_advantages(REWARDS, scale=scale)  # type: ignore[arg-type]
        assert found.values.flatten().tolist() == pytest.approx(values, abs=1e-9)


def test_unscored_answers_and_answers_without_a_scored_sibling_are_counted_and_not_known() -> None:
    found = grpo_advantages(REWARDS, scale="group")
    assert found.known.tolist() == [[True] * 4, [True] * 4, [False, True, True, True], [False] * 4]
    assert (found.num_unscored, found.num_level) == (4, 1)


def test_leave_one_out_compares_with_the_others_alone() -> None:
    found = rloo_advantages(REWARDS)
    assert found.values[0].tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 0, 4])
    assert found.values[2].tolist() == pytest.approx([0, 0, -1.5, 1.5])
    assert found.values[1].tolist() == [0, 0, 0, 0] and found.values[3].tolist() == [0, 0, 0, 0]
    assert (found.num_unscored, found.num_level) == (4, 1)


def test_equal_rewards_give_exactly_nothing_whatever_they_round_to() -> None:
    level = torch.full((1, 3), 0.1, dtype=torch.float32)
    assert grpo_advantages(level, scale="group").values.tolist() == [[0.0, 0.0, 0.0]]
    assert rloo_advantages(level).values.tolist() == [[0.0, 0.0, 0.0]]


def test_a_reward_s_unit_does_not_matter_to_scaled_groups_and_does_to_plain_ones() -> None:
    scaled = grpo_advantages(1000 * REWARDS[:1], scale="group").values
    torch.testing.assert_close(scaled, grpo_advantages(REWARDS[:1], scale="group").values, rtol=1e-3, atol=0)
    assert grpo_advantages(1000 * REWARDS[:1], scale="none").values[0, 3].item() == pytest.approx(3000)


def plain_gae(rewards: list[float], values: list[float], last: float, gamma: float, lam: float) -> list[float]:
    """Equation 16 as it stands: discounted sums of temporal differences."""
    following = [*values[1:], last]
    deltas = [r + gamma * after - now for r, now, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_generalised_advantages_of_answers_of_different_lengths() -> None:
    torch.manual_seed(8)
    lengths = [3, 1, 5]
    rewards, values = torch.randn(2, 9, dtype=torch.float64)
    last = torch.tensor([0.0, 0.7, -0.4], dtype=torch.float64)
    found, returns = gae(rewards, values, torch.tensor(lengths), gamma=0.9, lam=0.8, last_values=last)
    expected, at = [], 0
    for length, value in zip(lengths, last.tolist(), strict=True):
        part = slice(at, at + length)
        expected += plain_gae(rewards[part].tolist(), values[part].tolist(), value, 0.9, 0.8)
        at += length
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(returns, found + values)


def test_with_lambda_one_an_advantage_is_what_came_beyond_the_value_and_with_zero_one_step() -> None:
    rewards, values, lengths = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75]), torch.tensor([3])
    whole, returns = gae(rewards, values, lengths, gamma=1.0, lam=1.0, last_values=None)
    assert whole.tolist() == [0.5, 0.75, 0.25] and returns.tolist() == [1.0, 1.0, 1.0]
    step, _ = gae(rewards, values, lengths, gamma=1.0, lam=0.0, last_values=None)
    assert step.tolist() == [-0.25, 0.5, 0.25]
    cut, _ = gae(rewards, values, lengths, gamma=1.0, lam=0.0, last_values=torch.tensor([2.0]))
    assert cut.tolist() == [-0.25, 0.5, 2.25], "an answer that was cut off has its value still to come"


def test_the_score_stands_at_the_last_token_and_the_kl_at_every_one() -> None:
    found = token_rewards(
        torch.tensor([1.0, -2.0]),
        torch.tensor([-1.0, -1.0, -3.0]),
        torch.tensor([-2.0, -1.0, -1.0]),
        torch.tensor([1, 2]),
        kl_weight=0.1,
    )
    assert found.tolist() == pytest.approx([1 - 0.1, 0.0, 0.2 - 2.0])


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    found = whiten(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert found.mean().item() == pytest.approx(0, abs=1e-6) and found.std().item() == pytest.approx(1, rel=1e-4)
    assert whiten(torch.tensor([5.0])).tolist() == [0.0]
    assert not math.isnan(whiten(torch.tensor([2.0, 2.0]))[0].item())
