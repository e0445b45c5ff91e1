"""A teacher's mark as a reward. Owns the question and how its answer is read; who is asked, and what that costs, is the stage's.

Marks are single digits, 1 to 9: a "10" is one token for some judges and two for others, and the probability of its "1" cannot be told from
that of the mark 1. The expectation over digits takes what the judge nearly wrote into account, so that equal marks are rarely ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from tunesmith.protocols import Attempt, RewardContext
from tunesmith.recipe.rewards import JudgeOptions
from tunesmith.text.digits import expected_digit
from tunesmith.types import Completion, Message, SamplingParams, Score, TeacherRequest

_LOWEST, _HIGHEST = 1, 9
_MAX_TOKENS = 4
_NUM_LOGPROBS = 20
_MAX_SHOWN = 60


class Judge:
    """(mark - 1) / 8, in [0, 1]. Unscored where the judge failed or wrote no mark."""

    def __init__(self, options: JudgeOptions, ctx: RewardContext) -> None:
        self._options = options
        self._ask_all = ctx.ask_all
        self._criteria = options.criteria or words("criteria", options.language).substitute(
            task=(ctx.task.description or "").strip()
        )

    def __call__(self, attempts: Sequence[Attempt]) -> list[Score]:
        answers = self._ask_all([self._request(attempt) for attempt in attempts])
        return [_read(answer) for answer in answers]

    def _request(self, attempt: Attempt) -> TeacherRequest:
        language = self._options.language
        reference = ""
        if self._options.show_reference and attempt.reference is not None:
            reference = words("reward_reference", language).substitute(reference=attempt.reference)
        question = words("reward", language).substitute(
            criteria=self._criteria.strip(),
            prompt=conversation_text(attempt.prompt),
            reference=reference.strip() + "\n\n" if reference else "",
            completion=attempt.completion,
        )
        sampling = SamplingParams(max_tokens=_MAX_TOKENS, temperature=0.0, top_logprobs=_NUM_LOGPROBS)
        return TeacherRequest(messages=(Message(role="user", content=question),), sampling=sampling)


def _read(answer: Completion) -> Score:
    if answer.finish_reason == "error":
        return Score(value=None, explanation=f"the judge failed: {answer.error or 'unknown'}")
    mark = expected_digit(answer, _LOWEST, _HIGHEST)
    if mark is None:
        return Score(value=None, explanation=f"the judge's answer holds no mark: {answer.text[:_MAX_SHOWN]!r}")
    return Score(value=(mark - _LOWEST) / (_HIGHEST - _LOWEST), explanation=f"mark {mark:.3g}")


def conversation_text(messages: Sequence[Message]) -> str:
    """The last user turn alone where it is the only one, else every turn with its role."""
    shown = [message for message in messages if message.content]
    if len(shown) == 1:
        return shown[0].content
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in shown)


@cache
def words(name: str, language: str) -> Template:
    path = files("tunesmith.judging") / "prompts" / f"{name}.{language}.md"
    return Template(path.read_text(encoding="utf-8").strip())
