"""Losses over pairs and labels: by hand, against plain loops, against TRL's figures, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from tunesmith.errors import TrainingError
from tunesmith.training.objectives.preference import Pairs, bradley_terry, dpo, ipo, kto, kto_kl, orpo, simpo
from tunesmith.training.objectives.summed import Summed

LN3 = math.log(3)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(chosen: Any, rejected: Any, lengths: Any, reference: Any | None = None) -> Pairs:
    """lengths and reference: (of chosen, of rejected)."""
    given = (None, None) if reference is None else tuple(numbers(*each) for each in reference)
    return Pairs(numbers(*chosen), numbers(*rejected), *(torch.tensor(each) for each in lengths), *given)


# Token log-probabilities summed by answer; the figures of TRL 1.16.0 below were taken on the same ones.
THREE = pairs_of(
    (-1.4, -1.5, -2.6), (-1.5, -2.5, -2.2), ((3, 2, 4), (2, 4, 3)), ((-1.2, -1.7, -2.4), (-1.4, -2.2, -2.6))
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_of_a_pair_three_times_as_likely_as_under_the_reference() -> None:
    result = dpo(pairs_of([LN3 - 5], [-6], ([2], [2]), ([-5], [-6])), beta=1.0, label_smoothing=0.0)
    assert result.loss.item() == pytest.approx(math.log(4 / 3))  # sigmoid(ln 3) = 3/4
    assert {name: value.item() for name, value in result.sums.items()} == pytest.approx(
        {
            "accuracy": 1.0,
            "margin": LN3,
            "chosen_reward": LN3,
            "rejected_reward": 0.0,
            "chosen_log_ratio": LN3,
            "rejected_log_ratio": 0.0,
        }
    )
    smoothed = dpo(pairs_of([LN3 - 5], [-6], ([2], [2]), ([-5], [-6])), beta=1.0, label_smoothing=0.25)
    assert smoothed.loss.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))


def test_ipo_wants_a_mean_log_ratio_of_one_over_twice_beta_and_no_more() -> None:
    reached = pairs_of([-4], [-4], ([2], [4]), ([-6], [-4]))  # (2 - 0) / 2 tokens = 1 = 1 / (2 * 0.5)
    assert ipo(reached, beta=0.5).loss.item() == pytest.approx(0.0)
    too_far = pairs_of([-4], [-4], ([1], [4]), ([-6], [-4]))
    assert ipo(too_far, beta=0.5).loss.item() == pytest.approx(1.0)


def test_orpo_adds_the_cross_entropy_of_the_chosen_answer_and_the_odds_ratio() -> None:
    # token probabilities of a half (odds 1) against a quarter (odds 1/3): the ratio of odds is 3
    result = orpo(pairs_of([-3 * math.log(2)], [-2 * math.log(4)], ([3], [2])), odds_weight=0.1)
    assert result.loss.item() == pytest.approx(math.log(2) + 0.1 * math.log(4 / 3))
    assert result.sums["log_odds_ratio"].item() == pytest.approx(LN3)
    assert result.sums["nll"].item() == pytest.approx(math.log(2))


def test_simpo_compares_means_and_takes_the_margin_off() -> None:
    result = simpo(pairs_of([-2], [-8], ([2], [4])), beta=2.0, gamma=2 - LN3, label_smoothing=0.0)
    assert result.loss.item() == pytest.approx(math.log(4 / 3))  # 2 * (-1 + 2) - (2 - ln 3) = ln 3
    assert result.sums["margin"].item() == pytest.approx(2.0)


def test_kto_of_a_good_and_a_bad_answer() -> None:
    result = kto(
        numbers(LN3 - 1, LN3 - 1),
        numbers(-1.5, -1.5),
        torch.tensor([True, False]),
        numbers(0.5)[0],
        beta=1.0,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    assert result.loss.item() == pytest.approx(2 * (1 - 3 / 4) + 3 * (1 - 1 / 4))
    assert (
        result.sums["accuracy"].item() == 1.0
    )  # the good one is above the reference by more than the KL, the bad one too
    assert result.sums["desirable_reward"].item() == pytest.approx(LN3 + 0.5)
    assert kto_kl(numbers(-1, -2), numbers(-3, -2)).item() == 1.0
    assert kto_kl(numbers(-3, -2), numbers(-1, -2)).item() == 0.0, "an estimate below 0 is none"
    with pytest.raises(TrainingError, match="mismatched pairs"):
        kto_kl(numbers(), numbers())


def test_bradley_terry_with_a_margin_and_scores_kept_near_zero() -> None:
    plain = bradley_terry(numbers(LN3 + 2), numbers(2), margin=None, centre_weight=0.0)
    assert plain.loss.item() == pytest.approx(math.log(4 / 3))
    wanted_more = bradley_terry(numbers(LN3 + 2), numbers(2), margin=numbers(2 * LN3), centre_weight=0.5)
    assert wanted_more.loss.item() == pytest.approx(math.log(4) + 0.5 * (LN3 + 4) ** 2)


def test_a_tie_is_no_success() -> None:
    same = pairs_of([-1, -1], [-2, -2], ([1, 1], [1, 1]), ([-1, -2], [-2, -2]))
    assert dpo(same, beta=0.1, label_smoothing=0.0).sums["accuracy"].item() == 1.0


def test_every_loss_gives_trl_s_figures() -> None:
    """TRL 1.16.0 on the same log-probabilities: DPOTrainer, ORPOTrainer, CPOTrainer, KTOTrainer, RewardTrainer."""
    assert dpo(THREE, beta=0.3, label_smoothing=0.0).loss.item() / 3 == pytest.approx(0.7054694829905874)
    assert dpo(THREE, beta=0.3, label_smoothing=0.0).sums["margin"].item() / 3 == pytest.approx(-0.02)
    assert ipo(THREE, beta=0.3).loss.item() / 3 == pytest.approx(2.8270601851851858)
    odds = orpo(THREE, odds_weight=0.2)
    cross_entropy = 1.4 / 3 + 1.5 / 2 + 2.6 / 4
    assert odds.loss.item() - cross_entropy == pytest.approx(0.0853645653 + 0.1654046178 + 0.1226203591, rel=1e-6)
    for smoothing, expected in (
        (0.0, (0.7620344253, 1.2769564069, 0.9949558260)),
        (0.1, (0.7487010920, 1.1819564069, 0.9416224926)),
    ):
        found = simpo(THREE, beta=2.0, gamma=0.7, label_smoothing=smoothing).loss
        assert found.item() == pytest.approx(sum(expected), rel=1e-9)
    log_probs = torch.cat([THREE.chosen, THREE.rejected])
    reference = torch.cat([THREE.reference_chosen, THREE.reference_rejected])  # type: ignore[list-item]
    good = torch.tensor([True, False, True, False, False, True])
    kl = kto_kl(numbers(-1, -2, -3, -1.5, -2.5, -0.5), numbers(-1.3, -2.1, -2.9, -1.8, -2.5, -0.6))
    assert kl.item() == pytest.approx(0.11666666666666668)
    found = kto(log_probs, reference, good, kl, beta=0.4, desirable_weight=1.0, undesirable_weight=1.5).loss
    assert found.item() / 6 == pytest.approx(0.6171015317, rel=1e-9)
    chosen, rejected = numbers(1.0, 0.2, -0.5), numbers(0.3, 0.4, -2.0)
    assert bradley_terry(chosen, rejected, margin=None, centre_weight=0.0).loss.item() / 3 == pytest.approx(
        0.4675793987
    )
    centred = bradley_terry(chosen, rejected, margin=numbers(0, 0.5, 1), centre_weight=0.1)
    assert centred.loss.item() / 3 == pytest.approx(0.9368163607)
    assert centred.sums["accuracy"].item() == 2.0


def random_pairs(count: int, *, grad: bool = False) -> Pairs:
    torch.manual_seed(4)

    def draw() -> torch.Tensor:
        return -5 * torch.rand(count, dtype=torch.float64) - 0.05

    lengths = torch.randint(1, 9, (2, count))
    return Pairs(draw().requires_grad_(grad), draw().requires_grad_(grad), lengths[0], lengths[1], draw(), draw())


def plain(name: str, pairs: Pairs) -> float:
    """The formulas again, one pair at a time, as plain numbers."""
    total = 0.0
    for c, r, n, m, rc, rr in zip(
        *(each.tolist() for each in (pairs.chosen, pairs.rejected, pairs.chosen_lengths, pairs.rejected_lengths)),
        pairs.reference_chosen.tolist(),  # type: ignore[union-attr]
        pairs.reference_rejected.tolist(),  # type: ignore[union-attr]
        strict=True,
    ):
        if name == "dpo":
            h = 0.3 * ((c - rc) - (r - rr))
            total += -0.9 * math.log(sigmoid(h)) - 0.1 * math.log(1 - sigmoid(h))
        elif name == "ipo":
            total += ((c - rc) / n - (r - rr) / m - 1 / 0.6) ** 2
        elif name == "orpo":
            p, q = math.exp(c / n), math.exp(r / m)
            total += -c / n - 0.2 * math.log(sigmoid(math.log((p / (1 - p)) / (q / (1 - q)))))
        elif name == "simpo":
            total += -math.log(sigmoid(2 * (c / n - r / m) - 0.7))
        else:
            total += -math.log(sigmoid(c - r)) + 0.05 * (c + r) ** 2
    return total


LOSSES: dict[str, Callable[[Pairs], Summed]] = {
    "dpo": lambda pairs: dpo(pairs, beta=0.3, label_smoothing=0.1),
    "ipo": lambda pairs: ipo(pairs, beta=0.3),
    "orpo": lambda pairs: orpo(pairs, odds_weight=0.2),
    "simpo": lambda pairs: simpo(pairs, beta=2.0, gamma=0.7, label_smoothing=0.0),
    "reward": lambda pairs: bradley_terry(pairs.chosen, pairs.rejected, margin=None, centre_weight=0.05),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_plain_sum_and_its_gradient_is_right(name: str) -> None:
    pairs = random_pairs(7, grad=True)
    assert LOSSES[name](pairs).loss.item() == pytest.approx(plain(name, pairs), rel=1e-12)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        lengths = pairs.chosen_lengths, pairs.rejected_lengths
        return LOSSES[name](Pairs(chosen, rejected, *lengths, pairs.reference_chosen, pairs.reference_rejected)).loss

    assert gradcheck(loss, (pairs.chosen, pairs.rejected))


def test_the_gradient_of_kto_is_right_and_none_flows_into_its_kl() -> None:
    torch.manual_seed(5)
    log_probs, reference = torch.randn(6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    good, kl = torch.tensor([True, False, False, True, True, False]), numbers(0.3)[0].requires_grad_()

    def loss(values: torch.Tensor) -> torch.Tensor:
        return kto(values, reference, good, kl, beta=0.4, desirable_weight=1.0, undesirable_weight=1.5).loss

    assert gradcheck(loss, (log_probs,))
    loss(log_probs).backward()
    assert kl.grad is None
    assert bool((torch.where(good, log_probs.grad, -log_probs.grad) < 0).all()), "good answers up, bad ones down"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_in_two_passes_count_what_they_count_in_one(name: str) -> None:
    whole = random_pairs(7)
    names = ("chosen", "rejected", "chosen_lengths", "rejected_lengths", "reference_chosen", "reference_rejected")
    cut = [Pairs(*(getattr(whole, each)[part] for each in names)) for part in (slice(0, 2), slice(2, 7))]
    first, second, together = (LOSSES[name](pairs) for pairs in (*cut, whole))
    assert (first.loss + second.loss).item() == pytest.approx(together.loss.item(), rel=1e-12)
    for key, value in together.sums.items():
        assert (first.sums[key] + second.sums[key]).item() == pytest.approx(value.item(), abs=1e-12)


def test_orpo_of_certain_answers_stays_finite_with_a_finite_gradient() -> None:
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.tensor([0.0, -80.0], requires_grad=True)
    lengths = torch.ones(2, dtype=torch.long)
    result = orpo(Pairs(chosen, rejected, lengths, lengths), odds_weight=0.5)
    result.loss.backward()
    # alike, the odds cost log 2; a rejected answer that is never written costs nothing
    assert result.loss.item() == pytest.approx(0.5 * math.log(2), rel=1e-5)
    assert chosen.grad is not None and chosen.grad.tolist() == [-1.0, -1.0]  # of the cross-entropy
    assert rejected.grad is not None and rejected.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_large_margins_lose_no_digits_in_fp32() -> None:
    far, near, one = torch.tensor([0.0]), torch.tensor([-400.0]), torch.tensor([1])
    reference = torch.zeros(1)
    better = Pairs(far, near, one, one, reference, reference)
    assert dpo(better, beta=1.0, label_smoothing=0.0).loss.item() == 0.0
    worse = Pairs(near, far, one, one, reference, reference)
    assert dpo(worse, beta=1.0, label_smoothing=0.0).loss.item() == 400.0


def test_a_loss_that_compares_says_that_the_reference_is_missing() -> None:
    with pytest.raises(TrainingError, match="reference model") as caught:
        dpo(pairs_of([-1], [-2], ([1], [1])), beta=0.1, label_smoothing=0.0)
    assert "orpo" in (caught.value.hint or "")
