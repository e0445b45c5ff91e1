"""One step to a rollout: the policy that drew it is the policy of the step, and no second forward pass has to say so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith.errors import TrainingError
from tunesmith.recipe.align import Align
from tunesmith.training.head import Head
from tunesmith.training.policy_losses import ADVANTAGE, OLD, REFERENCE, PolicyLoss

LENGTHS = (3, 5, 1)


def hidden_and_head(dtype: torch.dtype) -> tuple[torch.Tensor, Head, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((9, 8), (40, 8)))
    targets = torch.randint(0, 40, (9,), generator=generator)
    return hidden.requires_grad_(), Head(weight.requires_grad_(), None), targets


def learnt(section: Align, dtype: torch.dtype, drawn: torch.Tensor) -> Any:
    """(loss, gradients, measures) of a batch whose tokens were drawn with log-probability `drawn`."""
    hidden, head, targets = hidden_and_head(dtype)
    loss = PolicyLoss(section)
    samples: Any = SimpleNamespace(num_targets=torch.tensor(LENGTHS).numpy(), columns={})
    loss.begin_step(samples, range(3), lambda *_: None)  # type: ignore[arg-type]  # pyright: ignore
    batch: Any = SimpleNamespace(
        targets=targets,
        num_rows=LENGTHS,
        columns={ADVANTAGE: torch.tensor([1.5, -0.5, -1.0])},
        token_columns={OLD: drawn, REFERENCE: drawn - 0.3},
    )
    value, measured = loss(head, hidden, batch)
    return value.detach(), torch.autograd.grad(value, (hidden, head.weight)), measured


def log_probs(dtype: torch.dtype, temperature: float = 0.9) -> torch.Tensor:
    hidden, head, targets = hidden_and_head(dtype)
    return head.log_probs(hidden, targets, temperature).detach()


def section_of(loss: str, **options: Any) -> Align:
    given = {"rewards": ["exact"], "temperature": 0.9, "kl_weight": 0.1}
    return Align.model_validate({"loss": loss, **given, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_the_step_s_own_log_probabilities_give_the_gradients_of_a_forward_pass_before_it(
    loss: str, dtype: torch.dtype
) -> None:
    measured_before = log_probs(dtype)
    with_pass = learnt(section_of(loss, rollout_epochs=2), dtype, measured_before)
    without = learnt(section_of(loss), dtype, measured_before)
    assert torch.equal(with_pass[0], without[0])
    for one, other in zip(with_pass[1], without[1], strict=True):
        assert torch.equal(one, other) and bool(one.any())
    assert without[2]["sampler_gap"] == 0 and "sampler_gap" not in with_pass[2]


def test_what_the_sampler_rounds_is_in_no_gradient_and_is_measured() -> None:
    exact, noise = log_probs(torch.bfloat16), 0.04 * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1])
    options = {"normalisation": "token", "kl_weight": 0}
    expected = learnt(section_of("grpo", **options), torch.bfloat16, exact)
    found = learnt(section_of("grpo", **options), torch.bfloat16, exact + noise)
    assert all(torch.equal(one, other) for one, other in zip(expected[1], found[1], strict=True))
    assert found[2]["ratio"] == pytest.approx(9) and found[2]["sampler_gap"] == pytest.approx(9 * 0.04, rel=1e-3)


@pytest.mark.parametrize(("dtype", "within", "beyond"), [(torch.float32, 0.005, 0.02), (torch.bfloat16, 1.5, 2.5)])
def test_a_sampler_that_drew_from_another_distribution_is_refused_in_every_step(
    dtype: torch.dtype, within: float, beyond: float
) -> None:
    drawn = log_probs(dtype)
    drawn[4] -= within
    learnt(section_of("grpo"), dtype, drawn)
    drawn[4] -= beyond - within
    with pytest.raises(TrainingError, match="ratio is not 1 before the first update"):
        learnt(section_of("grpo"), dtype, drawn)


def test_each_option_of_the_objective_has_its_effect() -> None:
    """A ratio of 2 on every token, so that clip and cap act."""
    drawn, dtype = log_probs(torch.float32), torch.float32
    options: dict[str, Any] = {"rollout_epochs": 2, "kl_weight": 0}

    def with_ratio_two(section: Align) -> Any:
        hidden, head, targets = hidden_and_head(dtype)
        loss = PolicyLoss(section)
        loss._fresh = False  # pyright: ignore[reportPrivateUsage]
        columns = {ADVANTAGE: torch.tensor([1.5, -0.5, -1.0])}
        tokens = {OLD: drawn - torch.tensor(2.0).log()}
        batch: Any = SimpleNamespace(targets=targets, num_rows=LENGTHS, columns=columns, token_columns=tokens)
        return loss(head, hidden, batch)[0].item()

    plain = with_ratio_two(section_of("grpo", **options))
    assert plain == pytest.approx(3 * 1.2 * -1.5 + 5 * 2 * 0.5 + 1 * 2 * 1.0, rel=1e-5)
    capped = with_ratio_two(section_of("grpo", ratio_cap=1.5, **options))
    assert capped == pytest.approx(3 * 1.2 * -1.5 + 5 * 1.5 * 0.5 + 1 * 1.5 * 1.0, rel=1e-5)
    hidden, head, _ = hidden_and_head(dtype)
    entropy = head.entropies(hidden, 0.9).sum().item()
    rewarded = with_ratio_two(section_of("grpo", entropy_weight=0.25, **options))
    assert rewarded == pytest.approx(plain - 0.25 * entropy, rel=1e-5) and entropy > 5
