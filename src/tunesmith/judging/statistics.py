"""Means with their standard errors, and paired comparisons. Knows numbers only, not what they measure.

A mean without an error says nothing: n = 20 with 80 % right is 80 +- 9 points. Samples are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Summary:
    """A mean over n samples. stderr is None for fewer than two; n_unscored samples could not be measured."""

    mean: float | None
    stderr: float | None
    n: int
    n_unscored: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One contestant minus another on the samples both have. interval: 95 %, paired bootstrap over samples."""

    difference: float | None
    stderr: float | None
    interval: tuple[float, float] | None
    n: int
    wins: int
    ties: int
    losses: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(values: Sequence[float | None], weights: Sequence[float] | None = None) -> Summary:
    """Mean and standard error of the scored values.

    Without weights: sample standard deviation / sqrt(n). With weights (tokens per sample): the ratio estimator
    r = sum(w v) / sum(w), error sqrt(n / (n - 1) * sum((w v - r w)^2)) / sum(w) (Cochran 1977, eq. 6.13 without the
    finite population correction).
    """
    scored, weighed = _scored(values, weights)
    num_unscored = len(values) - len(scored)
    if not len(scored):
        return Summary(None, None, 0, num_unscored)
    return Summary(_rounded(_mean(scored, weighed)), _stderr(scored, weighed), len(scored), num_unscored)


def compare(
    values: Sequence[float | None],
    others: Sequence[float | None],
    weights: Sequence[float] | None = None,
    *,
    lower_is_better: bool,
    rng_seed: int,
) -> Comparison:
    """`values` minus `others`, sample by sample. A sample that one of them lacks is left out of both."""
    paired = [
        None if value is None or other is None else value - other for value, other in zip(values, others, strict=True)
    ]
    scored, weighed = _scored(paired, weights)
    if not len(scored):
        return Comparison(None, None, None, 0, 0, 0, 0)
    better = -scored if lower_is_better else scored
    return Comparison(
        _rounded(_mean(scored, weighed)),
        _stderr(scored, weighed),
        _bootstrap(scored, weighed, rng_seed),
        len(scored),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
    )


def perplexity(loss: Summary) -> Summary:
    """exp of a loss in nats per token; its error by the delta method."""
    if loss.mean is None or loss.mean > 700:  # exp would overflow
        return Summary(None, None, loss.n, loss.n_unscored)
    value = math.exp(loss.mean)
    return Summary(
        _rounded(value), None if loss.stderr is None else _rounded(value * loss.stderr), loss.n, loss.n_unscored
    )


def summaries_as_json(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Summaries by metric, in the form of scores.json."""
    return {name: summary.as_json() for name, summary in summaries.items()}


def _scored(
    values: Sequence[float | None], weights: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weighed = [1.0] * len(values) if weights is None else weights
    pairs = [(value, weight) for value, weight in zip(values, weighed, strict=True) if value is not None and weight > 0]
    scored = np.array([value for value, _ in pairs], dtype=np.float64)
    return scored, np.array([weight for _, weight in pairs], dtype=np.float64)


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float((values * weights).sum() / weights.sum())


def _stderr(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    n = len(values)
    if n < 2:
        return None
    residuals = weights * (values - _mean(values, weights))
    return _rounded(math.sqrt(n / (n - 1) * float((residuals**2).sum())) / float(weights.sum()))


def _bootstrap(values: NDArray[np.float64], weights: NDArray[np.float64], rng_seed: int) -> tuple[float, float] | None:
    n = len(values)
    if n < 2:
        return None
    random = np.random.default_rng(rng_seed)
    means = np.empty(NUM_RESAMPLES)
    for index in range(NUM_RESAMPLES):  # one resample at a time: n may be large
        drawn = random.integers(0, n, n)
        means[index] = (values[drawn] * weights[drawn]).sum() / weights[drawn].sum()
    low, high = np.percentile(means, _INTERVAL)
    return _rounded(float(low)), _rounded(float(high))


def _rounded(value: float) -> float:
    return round(value, 6)
