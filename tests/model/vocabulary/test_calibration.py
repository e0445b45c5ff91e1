"""Rows brought to the frequencies of their tokens: what a head predicts on the average is what was counted."""

from __future__ import annotations

import pytest
import torch

from tunesmith.model.vocabulary.calibration import calibrate, count_tokens_of, unit_direction

ROWS, WIDTH, STATES = 60, 16, 400
NEW = torch.arange(40, ROWS)


@pytest.fixture
def hidden() -> torch.Tensor:
    """Hidden states with one large component in common, as those that a head reads have."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(STATES, WIDTH, generator=draw) + 8 * torch.randn(WIDTH, generator=draw)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2)) * 0.1


@pytest.fixture
def counts() -> torch.Tensor:
    return torch.randint(1, 2000, (ROWS,), generator=torch.Generator().manual_seed(3)).float()


def mean_probabilities(weight: torch.Tensor, bias: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.nn.functional.linear(hidden, weight, bias), -1).mean(0)


@pytest.mark.parametrize("has_bias", [True, False])
def test_each_token_is_predicted_as_often_as_it_is_counted(hidden, weight, counts, has_bias):
    bias = torch.linspace(-1, 1, ROWS) if has_bias else None
    wanted = counts[NEW] / counts.sum()
    before = mean_probabilities(weight, bias, hidden)
    assert (before[NEW] / wanted).log().abs().mean() > 0.5
    found = calibrate(weight, bias, hidden, counts, NEW)
    old = weight.clone()
    found.apply(weight, bias)
    after = mean_probabilities(weight, bias, hidden)
    assert (after[NEW] / wanted).log().abs().mean() < 0.05
    others = after[:40] / before[:40]  # they share what is left as they did, nearly: it differs between hidden states
    assert others.std() / others.mean() < 0.2
    assert torch.equal(weight[:40], old[:40])
    assert torch.equal(weight, old) == has_bias


def test_the_direction_reads_one_on_states_it_was_not_made_from(hidden):
    direction = unit_direction(hidden[:200])
    torch.testing.assert_close(hidden[200:] @ direction, torch.ones(200), atol=0.2, rtol=0)
    assert direction.norm() < 2 / hidden.norm(dim=1).mean()  # short: rows hardly move


def test_every_row_may_be_brought_to_its_frequency(hidden, weight, counts):
    calibrate(weight, None, hidden, counts, torch.arange(ROWS)).apply(weight, None)
    after = mean_probabilities(weight, None, hidden)
    assert (after / (counts / counts.sum())).log().abs().mean() < 0.05


def test_a_token_that_is_never_counted_becomes_rare_and_not_impossible(hidden, weight, counts):
    counts[45] = 0
    found = calibrate(weight, None, hidden, counts, NEW)
    assert torch.isfinite(found.biases).all()
    found.apply(weight, None)
    assert 0 < mean_probabilities(weight, None, hidden)[45] < 1e-4


def test_states_that_share_nothing_carry_no_bias(hidden, weight, counts):
    alike = calibrate(weight, None, hidden, counts, NEW)
    apart = calibrate(weight, None, torch.randn(STATES, WIDTH), counts, NEW)
    assert (alike.is_sound, apart.is_sound) == (True, False)
    assert calibrate(
        weight, torch.zeros(ROWS), torch.randn(STATES, WIDTH), counts, NEW
    ).is_sound  # a bias needs no vector


def test_tokens_are_counted_by_id_up_to_the_size_of_the_matrix():
    assert count_tokens_of(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 7).tolist() == [1, 0, 2, 0, 0, 1, 0]
