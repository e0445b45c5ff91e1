"""Filters that ask a judge: AlpaGasus ratings, DEITA's complexity and quality, a question of your own.

An answer that cannot be read leaves the row unscored (null), never with a middling value. The questions are data files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from tunesmith.data.filters.parts import shown, with_score
from tunesmith.protocols import FilterContext, Verdict
from tunesmith.recipe.score_filters import AlpagasusOptions, DeitaOptions, YesNoOptions
from tunesmith.text.digits import expected_digit
from tunesmith.types import Completion, Conversation, Message, SamplingParams, TeacherRequest

_DIMENSIONS = {"accuracy": {"en": "accuracy", "zh": "准确性"}, "helpfulness": {"en": "helpfulness", "zh": "有用性"}}
_RATING = re.compile(
    r"\s*(?:\W*(?:score|rating|评分|分数|得分)\W*)?(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*5\b)?", re.IGNORECASE
)
_YES_NO = re.compile(r"\W*(yes|true|no|false|是|对|否|不是|不)(?![A-Za-z])", re.IGNORECASE)
_NUM_LOGPROBS = 20
_DEITA_MARKS = (1, 6)


class Alpagasus:
    """AlpaGasus (Chen et al. 2024, section 3): greedy rating of accuracy or helpfulness, the number on the first line.
    Reasons alpagasus, unscored, judge_failed."""

    def __init__(self, options: AlpagasusOptions, ctx: FilterContext) -> None:
        self._options = options
        self._ask_all = ctx.ask_all

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        options = self._options
        name = f"alpagasus_{options.dimension}"
        dimension = _DIMENSIONS[options.dimension][options.language]
        questions = [_ask("alpagasus", options.language, row, dimension=dimension) for row in rows]
        verdicts: list[Verdict] = []
        for row, answer in zip(rows, self._ask_all([_request(each, 96) for each in questions]), strict=True):
            score = read_rating(answer.text)
            if score is None:
                verdicts.append(_unscored(row, name, [answer], keep=options.unscored == "keep"))
            elif score < options.min_score:
                verdicts.append(("alpagasus", f"{options.dimension} {score:g}, wanted is {options.min_score:g}"))
            else:
                verdicts.append(with_score(row, name, score))
        return verdicts


class Deita:
    """DEITA (Liu et al. 2024, section 2): per turn complexity times quality, summed; best rows first. Each of the two is
    the expectation over the digits 1 to 6 where the judge gives log-probabilities, else the digit it wrote.
    Reasons deita, deita_rank, unscored, judge_failed."""

    def __init__(self, options: DeitaOptions, ctx: FilterContext) -> None:
        self._options = options
        self._ask_all = ctx.ask_all

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        options = self._options
        turns = [_turns(row) for row in rows]
        questions = [
            _request(_fill(name, options.language, prompt=prompt, reply=reply), 4, top_logprobs=_NUM_LOGPROBS)
            for each in turns
            for prompt, reply in each
            for name in ("complexity", "quality")
        ]
        answers = iter(self._ask_all(questions))
        given = [[next(answers) for _ in range(2 * len(each))] for each in turns]
        scores = [self._score(each) for each in given]
        ranked = sorted((score for score in scores if score is not None and score >= options.min_score), reverse=True)
        least = ranked[options.keep_rows - 1] if options.keep_rows and len(ranked) > options.keep_rows else -math.inf
        room = options.keep_rows or len(rows)
        verdicts: list[Verdict] = []
        room -= (
            sum(score > least for score in ranked) if least > -math.inf else 0
        )  # places for rows at the limit itself
        for row, score, own in zip(rows, scores, given, strict=True):
            if score is None:
                verdicts.append(_unscored(row, "deita", own, keep=options.unscored == "keep"))
            elif score < options.min_score:
                verdicts.append(("deita", f"complexity times quality is {score:.2f}, wanted is {options.min_score:g}"))
            elif score < least or (score == least and room <= 0):
                verdicts.append(
                    ("deita_rank", f"complexity times quality is {score:.2f}, the best rows begin at {least:.2f}")
                )
            else:
                room -= score == least
                verdicts.append(with_score(row, "deita", round(score, 4)))
        return verdicts

    def _score(self, answers: Sequence[Completion]) -> float | None:
        values = [expected_digit(answer, *_DEITA_MARKS) for answer in answers]
        known = [value for value in values if value is not None]
        if not values or len(known) < len(values):
            return None
        return sum(complexity * quality for complexity, quality in zip(known[::2], known[1::2], strict=True))


class YesNo:
    """A question of the recipe's own, as in Lamini's validity filter. Reasons judged_no, unscored, judge_failed."""

    def __init__(self, options: YesNoOptions, ctx: FilterContext) -> None:
        self._options = options
        self._ask_all = ctx.ask_all

    def judge_all(self, rows: Sequence[Conversation]) -> list[Verdict]:
        options = self._options
        questions = [_ask("yes_no", options.language, row, question=options.question) for row in rows]
        verdicts: list[Verdict] = []
        for row, answer in zip(rows, self._ask_all([_request(each, 32) for each in questions]), strict=True):
            yes = read_yes_no(answer.text)
            if yes is None:
                verdicts.append(_unscored(row, "yes_no", [answer], keep=options.unscored == "keep"))
            else:
                verdicts.append(None if yes else ("judged_no", f"{options.question} {shown(answer.text)}"))
        return verdicts


def read_rating(text: str) -> float | None:
    """The number that begins the answer, from 0 to 5, else None."""
    match = _RATING.match(text)
    value = float(match[1]) if match else None
    return value if value is not None and 0 <= value <= 5 else None


def read_yes_no(text: str) -> bool | None:
    """Whether the answer begins with yes; None where it begins with neither."""
    match = _YES_NO.match(text)
    return None if match is None else match[1].lower() in ("yes", "true", "是", "对")


def _unscored(row: Conversation, name: str, answers: Sequence[Completion], *, keep: bool) -> Verdict:
    failed = next((answer for answer in answers if answer.finish_reason == "error"), None)
    if keep:
        return with_score(row, name, None)
    if failed is not None:
        return "judge_failed", failed.error or "the judge gave no answer"
    said = ", ".join(shown(answer.text) for answer in answers) or "nothing, the row has no turn to judge"
    return "unscored", f"the judge's answer cannot be read: {said}"


def _turns(row: Conversation) -> list[tuple[str, str]]:
    """(what the user asks, what the assistant answers), turn by turn."""
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    for message in row.messages:
        if message.role == "user":
            asked.append(message.content)
        elif message.role == "assistant" and asked and message.content:
            turns.append(("\n".join(asked), message.content))
            asked = []
    return turns


def _ask(name: str, language: str, row: Conversation, **slots: str) -> str:
    prompt = "\n\n".join(message.content for message in row.prompt if message.role != "system")
    return _fill(name, language, prompt=prompt, reply=row.reply or "", **slots)


def _fill(name: str, language: str, **slots: str) -> str:
    return _template(name, language).substitute(slots)


@cache
def _template(name: str, language: str) -> Template:
    path = files("tunesmith.data") / "prompts" / f"{name}.{language}.md"
    return Template(path.read_text(encoding="utf-8").strip())


def _request(question: str, max_tokens: int, *, top_logprobs: int | None = None) -> TeacherRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, top_logprobs=top_logprobs)
    return TeacherRequest(messages=(Message(role="user", content=question),), sampling=sampling)
