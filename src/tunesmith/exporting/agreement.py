"""Does one model say what another says? Logits side by side, and an engine's greedy answers against a reference.

Engines come in through the protocol; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.protocols import Prompt, ServingEngine
from tunesmith.types import SamplingParams


@dataclass(frozen=True)
class LogitAgreement:
    """Two models on the same rows."""

    num_rows: int
    num_positions: int
    max_logit_difference: float
    mean_kl: float  # of the second from the first, nats per position
    num_equal_top1: int


@dataclass(frozen=True)
class EngineAnswer:
    """What an engine wrote, greedily."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool  # by a stop id, not by length
    whole: bool = True  # False where the engine made tokens it did not report (control tokens inside an answer)


@dataclass(frozen=True)
class Divergence:
    """The first place where an engine's answer leaves the reference's."""

    prompt: int
    position: int  # token of the answer, from 0
    logit_gap: float  # between the reference's choice and the engine's, by the reference: near 0 is a tie


@dataclass(frozen=True)
class AnswerAgreement:
    """Greedy answers of an engine against a reference model."""

    num_prompts: int
    num_unread: int  # answers with tokens that the engine did not report; left out of all that follows
    num_equal: int  # whole answers
    num_tokens: int
    num_equal_tokens: int  # places where the reference, given the same text so far, chooses the same token
    mean_logprob_difference: float
    max_logprob_difference: float
    divergences: tuple[Divergence, ...]


@torch.no_grad()
def compute_logits(model: Any, rows: Sequence[Sequence[int]], last: int) -> list[Tensor]:
    """fp32 logits of the `last` positions of each row of ids (T, V), one row at a time (no padding can blur them)."""
    model.eval()
    device = next(model.parameters()).device
    logits: list[Tensor] = []
    for row in rows:
        ids = torch.tensor([list(row)], device=device)
        logits.append(model(input_ids=ids, use_cache=False, logits_to_keep=last).logits[0].float().cpu())
    return logits


def compare_logits(first: Sequence[Tensor], second: Sequence[Tensor]) -> LogitAgreement:
    """first, second: logits (T, V) of the same rows."""
    kl, equal, positions = 0.0, 0, 0
    largest = torch.zeros(())  # a tensor's maximum keeps a NaN, Python's max loses it
    for a, b in zip(first, second, strict=True):
        largest = torch.maximum(largest, (a - b).abs().max())
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl += (log_a.exp() * (log_a - log_b)).sum().item()
        equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += len(a)
    return LogitAgreement(len(first), positions, largest.item(), kl / max(1, positions), equal)


async def collect_answers(
    engine: ServingEngine, prompts: Sequence[Prompt], max_tokens: int, on_done: Callable[[int], None]
) -> list[EngineAnswer]:
    """Greedy answers, one after another (so that no neighbour changes a rounding). on_done(number of answers)."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    answers: list[EngineAnswer] = []
    for prompt in prompts:
        ids: list[int] = []
        logprobs: list[float] = []
        stopped, num_made = False, 0
        async for chunk in engine.stream(prompt, sampling, top_logprobs=1):
            ids.extend(entry.token_id for entry in chunk.logprobs)
            logprobs.extend(entry.logprob for entry in chunk.logprobs)
            stopped = stopped or chunk.finish_reason == "stop"
            num_made = max(num_made, chunk.completion_tokens)
        whole = num_made == len(ids) + stopped  # the stop id is counted and not reported
        answers.append(EngineAnswer(tuple(ids), tuple(logprobs), stopped, whole))
        on_done(len(answers))
    return answers


@torch.no_grad()
def compare_answers(model: Any, prompts: Sequence[Prompt], answers: Sequence[EngineAnswer]) -> AnswerAgreement:
    """Read each answer back through the reference model, in one pass a prompt: where the reference, given the same text
    so far, would have chosen another token, the two greedy answers part. No token is generated here."""
    model.eval()
    device = next(model.parameters()).device
    equal, tokens, equal_tokens = 0, 0, 0
    num_unread = sum(not answer.whole for answer in answers)
    differences: list[float] = []
    divergences: list[Divergence] = []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not answer.whole:
            continue
        ids = torch.tensor([[*prompt.input_ids, *answer.token_ids]], device=device)
        keep = len(answer.token_ids) + 1  # logits that choose each answer token, and the one after the last
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0].float().cpu()
        chosen = list(answer.token_ids)
        if answer.stopped:  # the engine does not report which stop id it was: the likeliest of them
            chosen.append(max(prompt.stop_ids, key=lambda stop: logits[-1, stop].item()))
        logits = logits[: len(chosen)]
        targets = torch.tensor(chosen, dtype=torch.long)
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        differences += [abs(logprobs[i].item() - told) for i, told in enumerate(answer.logprobs)]
        parted = (logits.argmax(-1) != targets).nonzero()[:, 0].tolist()
        tokens += len(chosen)
        equal_tokens += len(chosen) - len(parted)
        equal += not parted
        if parted:
            place = parted[0]
            gap = logits[place].max().item() - logits[place, chosen[place]].item()
            divergences.append(Divergence(index, place, gap))
    mean = sum(differences) / max(1, len(differences))
    worst = max(differences, default=0.0)
    return AnswerAgreement(len(answers), num_unread, equal, tokens, equal_tokens, mean, worst, tuple(divergences))
