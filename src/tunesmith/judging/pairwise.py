"""Which of two answers is better, asked twice: once in each order, because judges favour a place (Zheng et al. 2023,
"Judging LLM-as-a-Judge", arXiv 2306.05685, section 3.3: GPT-4 changed its mind with the order in a third of the cases).

Owns the question and how two verdicts become one. Who is asked, and what that costs, is the stage's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.judging.rewards.judge import conversation_text, words
from tunesmith.text.digits import expected_digit
from tunesmith.types import Completion, Message, SamplingParams, TeacherRequest

_SAMPLING = SamplingParams(max_tokens=4, temperature=0.0, top_logprobs=20)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    prompt: Sequence[Message]
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """preference: mean over both orders of the probability that the first answer is better, in [0, 1]; None where an order has no
    verdict. agreed: both orders named the same answer."""

    preference: float | None
    agreed: bool


def compare(
    pairs: Sequence[Pair],
    ask_all: Callable[[Sequence[TeacherRequest]], Sequence[Completion]],
    *,
    criteria: str,
    language: str,
) -> list[Verdict]:
    """One verdict per pair, in their order; two requests for each."""
    requests = [
        _request(pair.prompt, *answers, criteria, language)
        for pair in pairs
        for answers in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    said = [_probability_of_second(answer) for answer in ask_all(requests)]
    verdicts: list[Verdict] = []
    for plain, swapped in zip(said[::2], said[1::2], strict=True):
        if plain is None or swapped is None:
            verdicts.append(Verdict(None, False))
        else:
            verdicts.append(Verdict((1 - plain + swapped) / 2, (plain - 0.5) * (0.5 - swapped) > 0))
    return verdicts


def _request(prompt: Sequence[Message], first: str, second: str, criteria: str, language: str) -> TeacherRequest:
    question = words("pairwise", language).substitute(
        criteria=criteria, prompt=conversation_text(prompt), first=first, second=second
    )
    return TeacherRequest(messages=(Message(role="user", content=question),), sampling=_SAMPLING)


def _probability_of_second(answer: Completion) -> float | None:
    digit = None if answer.finish_reason == "error" else expected_digit(answer, 1, 2)
    return None if digit is None else digit - 1
