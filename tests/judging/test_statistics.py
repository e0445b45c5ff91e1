"""Means, errors and comparisons against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.judging.statistics import Summary, compare, perplexity, summarize


def test_mean_and_standard_error_by_hand() -> None:
    # 3 of 4 right: mean 0.75, sample variance 0.25, error sqrt(0.25 / 4) = 0.25
    assert summarize([1, 1, 1, 0]) == Summary(0.75, 0.25, 4, 0)


def test_unscored_samples_are_counted_and_left_out() -> None:
    assert summarize([1, None, 0, None, None]) == Summary(0.5, 0.5, 2, 3)
    assert summarize([None]) == Summary(None, None, 0, 1)
    assert summarize([0.5]) == Summary(0.5, None, 1, 0)
    assert summarize([]) == Summary(None, None, 0, 0)


def test_loss_is_weighed_by_tokens_with_the_error_of_a_ratio() -> None:
    # losses 1 and 3 over 10 and 30 tokens: r = (10 + 90) / 40 = 2.5
    # residuals 10 (1 - 2.5) = -15 and 30 (3 - 2.5) = 15; sqrt(2 / 1 * 450) / 40 = 0.75
    assert summarize([1, 3], [10, 30]) == Summary(2.5, 0.75, 2, 0)


def test_equal_weights_give_the_plain_error() -> None:
    values = [0.3, 0.9, 0.4, 0.1]
    assert summarize(values, [7] * 4) == summarize(values)


def test_perplexity_is_exp_of_the_loss_with_the_error_of_the_delta_method() -> None:
    found = perplexity(Summary(2.0, 0.1, 5, 1))
    assert (found.mean, found.stderr) == (round(math.exp(2), 6), round(math.exp(2) * 0.1, 6))
    assert perplexity(Summary(None, None, 0, 3)) == Summary(None, None, 0, 3)
    assert perplexity(Summary(1e6, 1.0, 2, 0)).mean is None


def test_a_comparison_is_paired_and_counts_wins_ties_and_losses() -> None:
    found = compare([1, 1, 0, None, 1], [0, 1, 1, 0, 0], lower_is_better=False, rng_seed=1)
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)
    assert found.difference == 0.25
    assert found.stderr == pytest.approx(np.std([1, 0, -1, 1], ddof=1) / 2, abs=1e-6)
    lower = compare([1, 1, 0, None, 1], [0, 1, 1, 0, 0], lower_is_better=True, rng_seed=1)
    assert (lower.wins, lower.losses) == (1, 2)


def test_the_interval_depends_on_the_seed_alone() -> None:
    values, others = list(np.linspace(0, 1, 30)), [0.4] * 30
    first, again, other = (compare(values, others, lower_is_better=False, rng_seed=seed) for seed in (1, 1, 2))
    assert first == again and first.interval != other.interval


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        found = compare(list(source.normal(0.3, 1, 60)), [0.0] * 60, lower_is_better=False, rng_seed=seed)
        assert found.interval is not None
        covered += found.interval[0] <= 0.3 <= found.interval[1]
    assert 88 <= covered <= 99  # 95 % nominal, 100 draws


def test_nothing_in_common_is_no_comparison() -> None:
    found = compare([None, 1], [1, None], lower_is_better=False, rng_seed=1)
    assert (found.difference, found.interval, found.n) == (None, None, 0)
