"""Policy losses on tokens laid end to end: by hand, against plain loops and TRL's figures, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

from tunesmith.errors import TrainingError
from tunesmith.training.objectives.normalising import Normalisation, divisor, per_sequence_sum, token_weights
from tunesmith.training.objectives.policy import (
    check_on_policy,
    clipped_loss,
    kl_estimate,
    log_ratio,
    policy_loss,
    value_loss,
)

OPTIONS: dict[str, Any] = {
    "level": "token",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "ratio_cap": None,
    "reference": None,
    "kl_weight": 0.0,
    "entropy": None,
    "entropy_weight": 0.0,
}

# Six answers of 3, 2, 4, 2, 4 and 3 tokens; TRL's figures below were taken on the same numbers, padded.
LENGTHS = torch.tensor([3, 2, 4, 2, 4, 3])
NEW = -torch.tensor(
    [.1, .9, .4, 1.2, .3, .5, .6, .7, .8, .8, .7, .2, .4, 1.6, .3, 2., .1, .1], dtype=torch.float64
)  # fmt: skip
OLD = NEW + torch.tensor(
    [.3, -.5, 0, 0, .2, -.4, .1, 0, .6, 0, 0, .2, -.3, .4, -.1, .1, .1, -.9], dtype=torch.float64
)  # fmt: skip
REFERENCE = NEW + 0.25 * torch.tensor(
    [1, -2, .5, 0, 1, -1, .2, .3, .1, .4, -.4, 1, -1, 2, -2, 0, 0, 1], dtype=torch.float64
)  # fmt: skip
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2, 0.3, -0.9], dtype=torch.float64)


def weights_of(normalisation: Normalisation) -> torch.Tensor:
    return token_weights(LENGTHS, normalisation, max_tokens=8).double()


def clipped(ratio: float, advantage: float, cap: float | None = None) -> tuple[float, dict[str, float]]:
    one = torch.ones(1, dtype=torch.float64)
    result = clipped_loss(one * math.log(ratio), one * advantage, one, clip_low=0.2, clip_high=0.5, ratio_cap=cap)
    return result.loss.item(), {name: value.item() for name, value in result.sums.items()}


def test_the_clip_holds_where_the_step_goes_further_the_same_way_and_nowhere_else() -> None:
    assert clipped(1.2, 2.0)[0] == pytest.approx(-2.4)
    assert clipped(1.7, 2.0) == (pytest.approx(-3.0), pytest.approx({"clipped_low": 0, "clipped_high": 1, "ratio": 1.7, "drift": 0.7 - math.log(1.7)}))  # fmt: skip
    assert clipped(0.5, 2.0)[0] == pytest.approx(-1.0), "a token that fell is brought back"
    assert clipped(0.5, -2.0)[0] == pytest.approx(1.6) and clipped(0.5, -2.0)[1]["clipped_low"] == 1
    assert clipped(5.0, -2.0)[0] == pytest.approx(10.0), "without a cap a bad token that rose costs without bound"
    assert clipped(5.0, -2.0, cap=3.0)[0] == pytest.approx(6.0)
    assert clipped(5.0, 2.0, cap=3.0)[0] == pytest.approx(-3.0), "the cap is for bad tokens only"


def test_before_the_first_update_the_gradient_is_that_of_reinforce() -> None:
    log_probs = NEW.clone().requires_grad_()
    weights = weights_of("token")
    result = policy_loss(log_probs, NEW, ADVANTAGES, LENGTHS, weights, **OPTIONS)
    result.loss.backward()
    assert torch.equal(log_probs.grad, -ADVANTAGES.repeat_interleave(LENGTHS))  # type: ignore[arg-type]
    assert result.sums["ratio"].item() == len(NEW) and result.sums["drift"].item() == 0.0


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [("sequence", 0.16551827686962145), ("token", 0.02133233912858995), ("constant", 0.007999627173221231)],
)
def test_the_normalisations_give_trl_s_figures(normalisation: Normalisation, expected: float) -> None:
    """TRL 1.16.0, loss_type grpo, dapo and dr_grpo, beta 0.05, epsilon 0.2 and 0.28, longest answer 8."""
    options = {**OPTIONS, "reference": REFERENCE, "kl_weight": 0.05}
    result = policy_loss(NEW, OLD, ADVANTAGES, LENGTHS, weights_of(normalisation), **options)
    count = divisor(normalisation, num_sequences=len(LENGTHS), num_tokens=len(NEW))
    assert result.loss.item() / count == pytest.approx(expected, rel=1e-6)
    if normalisation == "token":
        assert result.sums["kl"].item() / count == pytest.approx(0.032117387776816025)
        assert result.sums["clipped_high"].item() / count == pytest.approx(3 / 18)
        assert result.sums["clipped_low"].item() == 0.0


def test_ratios_of_whole_answers_and_the_cap_give_trl_s_figures() -> None:
    options = {**OPTIONS, "reference": REFERENCE, "kl_weight": 0.05}
    by_answer = policy_loss(
        NEW, OLD, ADVANTAGES, LENGTHS, weights_of("sequence"), **{**options, "level": "sequence_mean"}
    )
    assert by_answer.loss.item() / 6 == pytest.approx(0.1322917755650624, rel=1e-6)
    # TRL caps the unclipped ratio of every token, which for good ones the clip has done before
    capped = policy_loss(NEW, OLD, ADVANTAGES, LENGTHS, weights_of("token"), **{**options, "ratio_cap": 1.5})
    assert capped.loss.item() / 18 == pytest.approx(-0.026647816429257558, rel=1e-6)


def plain_loss(log_probs: list[float], normalisation: Normalisation) -> float:
    """Token by token in plain numbers: clip, KL and entropy, with a weight for each normalisation."""
    total, at = 0.0, 0
    for length, advantage in zip(LENGTHS.tolist(), ADVANTAGES.tolist(), strict=True):
        share = {"sequence": 1 / length, "token": 1.0, "constant": 1 / 8}[normalisation]
        for place in range(at, at + length):
            ratio = math.exp(log_probs[place] - OLD[place].item())
            loss = max(-ratio * advantage, -min(max(ratio, 0.8), 1.28) * advantage)
            gap = REFERENCE[place].item() - log_probs[place]
            total += share * (loss + 0.05 * (math.exp(gap) - gap - 1) - 0.01 * 0.1 * place)
        at += length
    return total


@pytest.mark.parametrize("normalisation", ["sequence", "token", "constant"])
def test_the_loss_is_the_plain_sum_and_its_gradient_is_right(normalisation: Normalisation) -> None:
    entropy = 0.1 * torch.arange(len(NEW), dtype=torch.float64)
    options = {**OPTIONS, "reference": REFERENCE, "kl_weight": 0.05, "entropy": entropy, "entropy_weight": 0.01}
    weights = weights_of(normalisation)

    def loss(log_probs: torch.Tensor) -> torch.Tensor:
        return policy_loss(log_probs, OLD, ADVANTAGES, LENGTHS, weights, **options).loss

    found = loss(NEW).item()
    assert found == pytest.approx(plain_loss(NEW.tolist(), normalisation), rel=1e-6)  # weights are fp32
    for level in ("token", "sequence_mean", "sequence_sum"):
        options["level"] = level
        assert gradcheck(loss, (NEW.clone().requires_grad_(),))


def test_answers_in_two_passes_count_what_they_count_in_one() -> None:
    options = {**OPTIONS, "reference": REFERENCE, "kl_weight": 0.05}
    for normalisation in ("sequence", "token", "constant"):
        weights = weights_of(normalisation)

        def part(tokens: slice, answers: slice, weights: torch.Tensor = weights) -> torch.Tensor:
            given = {**options, "reference": REFERENCE[tokens]}
            return policy_loss(
                NEW[tokens], OLD[tokens], ADVANTAGES[answers], LENGTHS[answers], weights[tokens], **given
            ).loss

        whole = part(slice(None), slice(None)).item()
        assert (part(slice(0, 5), slice(0, 2)) + part(slice(5, 18), slice(2, 6))).item() == pytest.approx(whole)


def test_the_ratio_of_an_answer_is_that_of_its_probabilities_or_the_mean_of_its_tokens() -> None:
    old, new, lengths = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -1.0, -3.25]), torch.tensor([2, 1])
    assert log_ratio(new, old, lengths, "token").tolist() == [-0.5, 1.0, -0.25]
    assert log_ratio(new, old, lengths, "sequence_sum").tolist() == [0.5, -0.25]
    assert log_ratio(new, old, lengths, "sequence_mean").tolist() == [0.25, -0.25]


@pytest.mark.parametrize("normalisation", ["sequence", "token", "constant"])
def test_before_the_first_update_every_level_has_the_same_gradient(normalisation: Normalisation) -> None:
    weights, found = weights_of(normalisation), []
    for level in ("token", "sequence_mean", "sequence_sum"):
        log_probs = NEW.clone().requires_grad_()
        options = {**OPTIONS, "level": level}
        policy_loss(log_probs, NEW, ADVANTAGES, LENGTHS, weights, **options).loss.backward()
        found.append(log_probs.grad)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=0)


def test_leave_one_out_is_a_mean_over_answers_of_clipped_ratios_of_their_probabilities() -> None:
    expected, at = 0.0, 0
    for length, advantage in zip(LENGTHS.tolist(), ADVANTAGES.tolist(), strict=True):
        ratio = math.exp((NEW[at : at + length] - OLD[at : at + length]).sum().item())
        expected += max(-ratio * advantage, -min(max(ratio, 0.8), 1.28) * advantage) / 6
        at += length
    weights = weights_of("token")
    found = policy_loss(NEW, OLD, ADVANTAGES, LENGTHS, weights, **{**OPTIONS, "level": "sequence_sum"})
    assert found.loss.item() / 6 == pytest.approx(expected)


def test_a_token_counts_what_the_normalisation_says() -> None:
    lengths = torch.tensor([1, 3])
    assert token_weights(lengths, "sequence", max_tokens=4).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    assert token_weights(lengths, "token", max_tokens=4).tolist() == [1, 1, 1, 1]
    assert token_weights(lengths, "constant", max_tokens=4).tolist() == [0.25] * 4
    counts = {"num_sequences": 2, "num_tokens": 4}
    assert [divisor(each, **counts) for each in ("sequence", "token", "constant")] == [2, 4, 2]
    assert per_sequence_sum(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1, 0, 3])).tolist() == [1, 0, 9]


def test_the_kl_estimates_have_the_expectations_and_gradients_that_are_claimed() -> None:
    torch.manual_seed(6)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)
    chances = policy.detach().exp()
    kl = (policy.exp() * (policy - reference)).sum()
    reverse = (reference.exp() * (reference - policy)).sum()
    for kind in ("k1", "k3"):
        assert (chances * kl_estimate(policy.detach(), reference, kind)).sum().item() == pytest.approx(kl.item())
    assert bool((kl_estimate(policy, reference, "k3") >= 0).all())
    assert kl_estimate(policy, reference, "k1").min().item() < 0

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    drawn = {kind: gradient((chances * kl_estimate(policy, reference, kind)).sum()) for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(drawn["k2"], gradient(kl))
    torch.testing.assert_close(drawn["k3"], gradient(reverse))
    torch.testing.assert_close(drawn["k1"], torch.zeros(5, dtype=torch.float64))


def test_the_value_loss_takes_the_worse_of_the_plain_and_the_clipped_error() -> None:
    values, old, returns = (torch.tensor(each) for each in ([2.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 3.0]))
    result = value_loss(values, old, returns, torch.tensor([1.0, 1.0, 0.5]), clip=0.5)
    # errors 1, 0, 4; clipped values 1.5, 0.5, 1: errors 0.25, 0.25, 4
    assert result.loss.item() == pytest.approx(0.5 * (1 + 0.25 + 0.5 * 4))
    assert result.sums["value_clipped"].item() == 1.0
    assert value_loss(values, old, returns, torch.ones(3), clip=None).loss.item() == pytest.approx(2.5)
    torch.manual_seed(7)
    given = torch.randn(4, 5, dtype=torch.float64)

    def loss(values: torch.Tensor) -> torch.Tensor:
        return value_loss(values, given[0], given[1], given[2].abs(), clip=0.3).loss

    assert gradcheck(loss, (given[3].clone().requires_grad_(),))


def test_a_ratio_that_is_not_one_before_the_first_update_stops_the_training() -> None:
    drawn = torch.tensor([-1.0, -2.0, -0.5])
    assert check_on_policy(drawn + 1e-6, drawn, tolerance=1e-4) == pytest.approx(1e-6, rel=0.2)
    with pytest.raises(TrainingError, match=r"token 1 .* -1\.8000, and drew it with -2\.0000") as caught:
        check_on_policy(drawn + torch.tensor([0.0, 0.2, 0.1]), drawn, tolerance=1e-4)
    assert "one temperature" in (caught.value.hint or "")
    with pytest.raises(TrainingError, match="token 2"):
        check_on_policy(drawn + torch.tensor([0.0, 0.0, float("nan")]), drawn, tolerance=1e-4)


def test_what_a_term_needs_is_asked_for_by_name() -> None:
    weights = weights_of("token")
    with pytest.raises(TrainingError, match="reference log-probabilities"):
        policy_loss(NEW, OLD, ADVANTAGES, LENGTHS, weights, **{**OPTIONS, "kl_weight": 0.1})
    with pytest.raises(TrainingError, match="entropies"):
        policy_loss(NEW, OLD, ADVANTAGES, LENGTHS, weights, **{**OPTIONS, "entropy_weight": 0.1})
    with pytest.raises(TrainingError, match="18 advantages for 6 answers"):
        tokens = ADVANTAGES.repeat_interleave(LENGTHS)
        policy_loss(NEW, OLD, tokens, LENGTHS, weights, **{**OPTIONS, "level": "sequence_sum"})
