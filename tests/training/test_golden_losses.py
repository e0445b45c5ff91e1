"""The first three losses of every method, stored: a fixed tiny model and data, stepped by AdamW.

The numbers are those of the plain loops in this file: one answer at a time through transformers' own forward, formulas of the
papers in plain torch, torch's AdamW. Both those loops and the training engine must still give them. Weights and data come
from closed formulas, so that no random generator can change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.chat.renderer import RenderedArrays
from tunesmith.model.value_head import ValueHead
from tunesmith.recipe import Runtime
from tunesmith.recipe.align import Align
from tunesmith.stages.train import pace_of
from tunesmith.training.batches import Samples
from tunesmith.training.forward import varlen_forward
from tunesmith.training.losses import LOSSES
from tunesmith.training.objectives.advantages import gae, grpo_advantages, rloo_advantages, token_rewards, whiten
from tunesmith.training.pairs import labelled_samples, pair_samples, with_reference
from tunesmith.training.policy_losses import ADVANTAGE, OLD, REFERENCE, RETURN, VALUE, PolicyLoss
from tunesmith.training.preference_losses import Kto
from tunesmith.training.step import Stepper

STEPS = 3
RATES = {"rloo": 0.0002}  # others 0.02; there the ratio of a whole answer leaves the clip at the first step
BETA, GAMMA = 0.2, 0.3  # of the preference losses
CLIP, KL, VALUE_WEIGHT, LAMBDA = 0.2, 0.1, 0.1, 0.95  # of the policy losses

GOLDEN: dict[str, list[float]] = {
    "cross_entropy": [4.3976688, 3.6860359, 3.2651536],
    "dpo": [0.6961505, 0.3827144, 0.2019101],
    "ipo": [5.9813142, 2.1926599, 0.3117060],
    "orpo": [3.9956675, 3.2806680, 2.9501486],
    "simpo": [0.7642035, 0.6475334, 0.5427654],
    "kto": [0.5087469, 0.3952160, 0.3038687],
    "grpo": [0.1124426, 0.0309536, 0.0576368],
    "rloo": [0.0000000, -0.0379640, -0.0757823],
    "ppo": [0.0155416, -0.1527573, -0.1544857],
}

Answer = tuple[list[int], list[int]]  # prompt, reply


def rate_of(name: str) -> float:
    return RATES.get(name, 0.02)


def ids(start: int, count: int) -> list[int]:
    return [3 + (17 * start + 7 * place * place + 5 * place) % 58 for place in range(count)]


PAIRS: list[tuple[Answer, Answer]] = [
    ((ids(n, length), ids(n + 10, good)), (ids(n, length), ids(n + 20, bad)))
    for n, (length, good, bad) in enumerate([(6, 3, 5), (9, 4, 1), (4, 2, 7)])
]
SINGLE: list[Answer] = [answer for pair in PAIRS for answer in pair]
LABELS = [True, False, True, True, False, False]
STRANGERS: list[Answer] = [(SINGLE[n][0], SINGLE[(n + 2) % 6][1]) for n in range(6)]
SHIFTS = [0.3, -0.4, 0.1, 0.2, -0.3, 0.25]  # the reference is not quite the model that begins
GROUPS: list[list[Answer]] = [[(ids(n, 5 + n), ids(n + 30 + 3 * k, 2 + (n + 2 * k) % 5)) for k in range(3)] for n in (0, 1)]  # fmt: skip
REWARDS = [[1.0, 0.25, -0.5], [0.0, 0.75, 0.5]]


def new_model() -> Any:
    """Two Llama blocks 16 wide, every weight a sine of its place."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * (0.71 + 0.013 * number) + number)
            weight.copy_((1 + 0.1 * wave if "norm" in name else 0.3 * wave).reshape(weight.shape).float())
    return model.float().eval()


def new_head() -> ValueHead:
    head = ValueHead(16)
    with torch.no_grad():
        head.weight.copy_(0.2 * torch.sin(torch.arange(16.0) * 1.3)[None])
    return head


def token_log_probs(model: Any, answer: Answer) -> torch.Tensor:
    """(reply,) of the reply's tokens, by the model's own forward."""
    prompt, reply = answer
    logits = model(input_ids=torch.tensor([prompt + reply]), use_cache=False).logits[0].float()
    targets = torch.tensor(reply)
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1).gather(1, targets[:, None])[:, 0]


def token_values(model: Any, head: ValueHead, answer: Answer) -> torch.Tensor:
    prompt, reply = answer
    hidden = model.model(input_ids=torch.tensor([prompt + reply]), use_cache=False).last_hidden_state[0]
    return (hidden[len(prompt) - 1 : -1] @ head.weight[0]) + head.bias[0]


@torch.no_grad()
def constants(function: Callable[[Answer], torch.Tensor], answers: Sequence[Answer]) -> list[torch.Tensor]:
    return [function(answer).double() for answer in answers]


def plain_losses(name: str) -> list[float]:
    """Three steps of the formulas as the papers print them."""
    model, head = new_model(), new_head()
    weights = [*model.parameters(), *(head.parameters() if name == "ppo" else ())]
    optimizer = torch.optim.AdamW(weights, lr=rate_of(name), betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    loss_of = plain_policy(name, model, head) if name in ("grpo", "rloo", "ppo") else plain_comparison(name, model)
    losses: list[float] = []
    for _ in range(STEPS):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def plain_comparison(name: str, model: Any) -> Callable[[], torch.Tensor]:
    def total(answer: Answer) -> torch.Tensor:
        return token_log_probs(model, answer).sum()

    known = constants(total, SINGLE)
    reference = [float(value) + shift for value, shift in zip(known, SHIFTS, strict=True)]
    strangers = [float(value) for value in constants(total, STRANGERS)]

    def pair(number: int) -> torch.Tensor:
        good, bad = (total(SINGLE[2 * number + side]) for side in (0, 1))
        n, m = (len(SINGLE[2 * number + side][1]) for side in (0, 1))
        r, s = good - reference[2 * number], bad - reference[2 * number + 1]
        if name == "dpo":
            return -torch.log(torch.sigmoid(BETA * (r - s)))
        if name == "ipo":
            return (r / n - s / m - 1 / (2 * BETA)) ** 2
        if name == "simpo":
            return -torch.log(torch.sigmoid(BETA * (good / n - bad / m) - GAMMA))
        p, q = torch.exp(good / n), torch.exp(bad / m)
        return -good / n - BETA * torch.log(torch.sigmoid(torch.log(p / (1 - p) * (1 - q) / q)))

    def labelled() -> torch.Tensor:
        with torch.no_grad():
            gaps = [float(total(answer)) - before for answer, before in zip(STRANGERS, strangers, strict=True)]
        z, found = max(0.0, sum(gaps) / len(gaps)), torch.zeros(())
        for answer, before, is_good in zip(SINGLE, reference, LABELS, strict=True):
            r = total(answer) - before
            found = found + 1 - torch.sigmoid(BETA * (r - z) if is_good else BETA * (z - r))
        return found / len(SINGLE)

    if name == "cross_entropy":
        return lambda: -torch.cat([token_log_probs(model, answer) for answer in SINGLE]).mean()
    if name == "kto":
        return labelled
    return lambda: sum((pair(number) for number in range(len(PAIRS))), torch.zeros(())) / len(PAIRS)


def plain_policy(name: str, model: Any, head: ValueHead) -> Callable[[], torch.Tensor]:
    answers = [answer for group in GROUPS for answer in group]
    old = constants(lambda answer: token_log_probs(model, answer), answers)
    reference = [each + 0.05 * torch.sin(torch.arange(len(each)) + n) for n, each in enumerate(old)]
    num_tokens = sum(map(len, old))
    values = constants(lambda answer: token_values(model, head, answer), answers)
    advantages, returns = plain_advantages(name, old, reference, values)

    def loss() -> torch.Tensor:
        found = torch.zeros((), dtype=torch.float64)
        for n, answer in enumerate(answers):
            now = token_log_probs(model, answer).double()
            if name == "rloo":  # the ratio of the whole answer
                ratio = torch.exp((now - old[n]).sum())
                found = found - torch.minimum(ratio * advantages[n], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[n]) / len(answers)  # fmt: skip
                continue
            ratio = torch.exp(now - old[n])
            gain = torch.minimum(ratio * advantages[n], ratio.clamp(1 - CLIP, 1 + CLIP) * advantages[n])
            found = found - gain.sum() / num_tokens
            if name == "grpo":
                gap = reference[n] - now
                found = found + KL * (torch.exp(gap) - gap - 1).sum() / num_tokens
            else:
                said = token_values(model, head, answer).double()
                near = values[n] + (said - values[n]).clamp(-CLIP, CLIP)
                worse = torch.maximum((said - returns[n]) ** 2, (near - returns[n]) ** 2)
                found = found + VALUE_WEIGHT * worse.sum() / 2 / num_tokens
        return found

    return loss


def plain_advantages(
    name: str, old: list[torch.Tensor], reference: list[torch.Tensor], values: list[torch.Tensor]
) -> tuple[list[Any], list[torch.Tensor]]:
    """One number for each answer (grpo, rloo), or one for each token and what the value function learns (ppo)."""
    found: list[Any] = []
    for number, group in enumerate(REWARDS):
        if name == "rloo":  # the divergence is in the reward
            gaps = [float((old[3 * number + k] - reference[3 * number + k]).sum()) for k in range(3)]
            totals = [reward - KL * gap for reward, gap in zip(group, gaps, strict=True)]
            found += [total - (sum(totals) - total) / 2 for total in totals]
        else:
            mean = sum(group) / 3
            deviation = math.sqrt(sum((reward - mean) ** 2 for reward in group) / 2)
            found += [(reward - mean) / (deviation + 1e-4) for reward in group]
    if name != "ppo":
        return found, []
    by_token: list[torch.Tensor] = []
    for n, reward in enumerate(reward for group in REWARDS for reward in group):
        earned = -KL * (old[n] - reference[n])
        earned[-1] += reward
        following = torch.cat([values[n][1:], torch.zeros(1)])
        deltas = earned + following - values[n]
        sums = [sum(LAMBDA ** (k - t) * float(deltas[k]) for k in range(t, len(deltas))) for t in range(len(deltas))]
        by_token.append(torch.tensor(sums, dtype=torch.float64))
    every = torch.cat(by_token)
    whitened = [(each - every.mean()) / (every.std() + 1e-4) for each in by_token]
    return whitened, [each + value for each, value in zip(by_token, values, strict=True)]


def rendered(answer: Answer) -> RenderedArrays:
    both = np.array(answer[0] + answer[1], dtype=np.int32)
    return RenderedArrays(both, np.zeros(len(both), np.int16), np.arange(len(both)) >= len(answer[0]), "")


def our_losses(name: str) -> list[float]:
    """Three steps of the training engine, the whole data in one pack."""
    model, head = new_model(), new_head()
    options: dict[str, Any] = {"beta": BETA}
    if name in ("grpo", "rloo", "ppo"):
        options = {"rewards": [{"name": "exact"}], "kl_weight": KL, "rollout_epochs": STEPS}
    elif name == "simpo":
        options["simpo_gamma"] = GAMMA
    chosen: dict[str, Any] = {} if name == "cross_entropy" else {"loss": name}
    section = Align(**chosen, **options)
    if name in ("grpo", "rloo", "ppo"):
        samples = policy_samples(name, model, head)
        loss: Any = PolicyLoss(section, head if name == "ppo" else None)
        if name == "ppo":
            model.add_module("value_head", head)
    else:
        samples, loss = comparison_samples(name, model, section)
    rate = rate_of(name)
    stepper = Stepper(model, loss, section, pace_of(Runtime()), learning_rate=rate)
    packs = [tuple(range(len(samples.lengths)))]
    with varlen_forward(model), stepper.weights:
        return [stepper.take(samples, packs, step, rate).loss for step in range(STEPS)]


def comparison_samples(name: str, model: Any, section: Align) -> tuple[Samples, Any]:
    def summed(answers: Sequence[Answer]) -> np.ndarray:
        return np.array([float(each.sum()) for each in constants(lambda a: token_log_probs(model, a), answers)])

    names = [f"row {n}" for n in range(6)]
    reference = summed(SINGLE) + np.array(SHIFTS)
    if name == "kto":
        strangers = labelled_samples([rendered(each) for each in STRANGERS], LABELS, names)
        samples = labelled_samples([rendered(each) for each in SINGLE], LABELS, names)
        return with_reference(samples, reference), Kto(section, with_reference(strangers, summed(STRANGERS)))
    samples = pair_samples([(rendered(good), rendered(bad)) for good, bad in PAIRS], names[:3])
    loss = LOSSES.load(name, where=None)(section)
    return (samples if name == "cross_entropy" else with_reference(samples, reference)), loss


def policy_samples(name: str, model: Any, head: ValueHead) -> Samples:
    answers = [answer for group in GROUPS for answer in group]
    old = constants(lambda answer: token_log_probs(model, answer), answers)
    reference = [each + 0.05 * torch.sin(torch.arange(len(each)) + n) for n, each in enumerate(old)]
    lengths, rewards = torch.tensor([len(each) for each in old]), torch.tensor(REWARDS, dtype=torch.float64)
    columns, of_tokens = dict[str, Any](), {OLD: torch.cat(old)}
    if name == "ppo":
        values = torch.cat(constants(lambda answer: token_values(model, head, answer), answers))
        earned = token_rewards(rewards.flatten(), torch.cat(old), torch.cat(reference), lengths, kl_weight=KL)
        advantages, returns = gae(earned, values, lengths, gamma=1.0, lam=LAMBDA, last_values=None)
        of_tokens |= {ADVANTAGE: whiten(advantages), RETURN: returns, VALUE: values}
    elif name == "rloo":
        gaps = [float((a - b).sum()) for a, b in zip(old, reference, strict=True)]
        found = rloo_advantages(rewards - KL * torch.tensor(gaps, dtype=torch.float64).reshape(2, 3))
        columns[ADVANTAGE] = found.values.flatten().numpy()
    else:
        columns[ADVANTAGE] = grpo_advantages(rewards, scale="group").values.flatten().numpy()
        of_tokens[REFERENCE] = torch.cat(reference)
    mask = np.concatenate([rendered(answer).loss_mask for answer in answers])
    placed = {column: np.zeros(len(mask)) for column in of_tokens}
    for column, found_values in of_tokens.items():
        placed[column][mask] = found_values.numpy()
    return Samples(
        input_ids=np.concatenate([rendered(answer).input_ids for answer in answers]),
        loss_mask=mask.astype(np.uint8),
        lengths=np.array([len(answer[0]) + len(answer[1]) for answer in answers]),
        ids=tuple(f"answer {n}" for n in range(6)),
        group_sizes=np.array([3, 3]),
        columns=columns,
        token_columns=placed,
    )


METHODS = ("cross_entropy", "dpo", "ipo", "orpo", "simpo", "kto", "grpo", "rloo", "ppo")


@pytest.mark.parametrize("name", METHODS)
def test_the_first_losses_are_the_stored_ones(name: str) -> None:
    assert plain_losses(name) == pytest.approx(GOLDEN[name], rel=1e-4, abs=1e-6), "the plain loop"
    assert our_losses(name) == pytest.approx(GOLDEN[name], rel=1e-3, abs=1e-5), "the engine"
