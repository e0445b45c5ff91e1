"""Rollouts for the stage align: prompts of the training split, sampled answers, and their rewards.

Introduces the sampler (inference), the rewards (judging) and the loop (training) to each other. Every answer is kept in
logs/rollouts.jsonl with its reward. Refuses to know what an objective makes of them: rollout_samples.py does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from tunesmith.chat.renderer import Renderer
from tunesmith.errors import DataError, TrainingError
from tunesmith.events import Metric, Note, Progress
from tunesmith.inference.forward import context_length_of
from tunesmith.inference.rollouts import Rollout, RolloutSampler
from tunesmith.inference.transformers_engine import common_prefix
from tunesmith.judging.rewards.combining import Rewarded, WeightedRewards
from tunesmith.model.value_head import ValueHead
from tunesmith.protocols import Attempt, EventSink, Prompt
from tunesmith.recipe.align import Align
from tunesmith.stages.rollout_samples import AnswerGroup, RolloutSamples
from tunesmith.text.jsonl import RecordLog, read_log, write_records
from tunesmith.training.batches import Samples
from tunesmith.training.objectives.advantages import GroupAdvantages
from tunesmith.training.ranks import Ranks
from tunesmith.types import Conversation, Excluded, Record, SamplingParams

ROLLOUTS = "logs/rollouts.jsonl"


class RolloutLine(Record):
    """One answer, as the rewards saw it. reward None: nobody could say, and `why` says why."""

    rollout: int  # from 0
    row: str
    answer: str  # before stop_string, where there is one
    num_tokens: int
    finish_reason: str
    stop_string: str | None = None
    reward: float | None
    why: str | None = None


class Rollouts:
    """Draws rollout 0, 1, ...: the prompts are a permutation of all for each pass, by the seed."""

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        rows: Sequence[Conversation],
        rewards: WeightedRewards,
        section: Align,
        *,
        batch_size: int,
        value_head: ValueHead | None,
        log: Path,
        events: EventSink,
        length_limit: int,
    ) -> None:
        self._renderer, self._section, self._events = renderer, section, events
        self._rewards, self._log = rewards, log
        self._sampler = RolloutSampler(model, batch_size=batch_size, decode=renderer.decode)
        room = min(length_limit, context_length_of(model)) - section.max_tokens
        self.dropped: list[Excluded] = []
        self._log_is_tidy = False
        self._rows, self._prompts = self._usable(rows, renderer, room)
        self._shared_prefix = common_prefix([prompt.input_ids for prompt in self._prompts])
        self._samples = RolloutSamples(model, section, value_head)

    @property
    def num_prompts(self) -> int:
        """That can be asked."""
        return len(self._prompts)

    @property
    def num_rollouts(self) -> int:
        """Of num_epochs passes over the prompts."""
        return max(1, math.ceil(self._section.num_epochs * len(self._rows) / self._section.prompts_per_rollout))

    @property
    def counts(self) -> dict[str, int]:
        """Of every answer of this order, those before a kill too."""
        lines = read_log(self._log, RolloutLine)
        return {"answers": len(lines), "unscored_answers": sum(line.reward is None for line in lines)}

    def draw(self, number: int) -> Samples:
        """The samples of one rollout under the weights of now. Where nobody can score its answers, other prompts are asked
        in their place; TrainingError where more answers in a row than align.max_failures allows have no score."""
        num_unscored = 0
        for attempt in itertools.count():
            place = number + attempt * self.num_rollouts  # a later pass over the prompts, in another order
            chosen = self._chosen(place)
            groups = self._sample(place, chosen)
            rewarded = Ranks.current().from_first(partial(self._reward, number, chosen, groups))
            totals = _totals(rewarded)
            advantages = self._samples.advantages(totals)
            self._tell(number, groups, rewarded, advantages)
            if bool(advantages.known.any()):
                return self._samples.build(self._with_prompts(chosen, groups), totals, advantages)
            num_unscored += advantages.num_unscored
            self._give_up_or_go_on(number, num_unscored, rewarded)
        raise AssertionError("unreachable")

    def _with_prompts(self, chosen: Sequence[int], groups: Sequence[Sequence[Rollout]]) -> list[AnswerGroup]:
        return [
            AnswerGroup(self._rows[index].id, tuple(self._prompts[index].input_ids), group)
            for index, group in zip(chosen, groups, strict=True)
        ]

    def _sample(self, place: int, chosen: Sequence[int]) -> list[list[Rollout]]:
        """Answers to every prompt: each rank draws those of its share, and all get all."""
        return Ranks.current().share_out(
            [self._prompts[index].input_ids for index in chosen],
            lambda mine: self._sample_here(place, [chosen[index] for index in mine]),
        )

    def _sample_here(self, place: int, chosen: Sequence[int]) -> list[list[Rollout]]:
        section = self._section
        sampling = SamplingParams(
            max_tokens=section.max_tokens,
            temperature=section.temperature,
            stop=section.stop,
            rng_seed=section.rng_seed + place,
        )
        total, done = len(chosen) * section.num_generations, 0

        def count(_prompt: int, _answer: int, _rollout: Rollout) -> None:
            nonlocal done
            done += 1
            self._events.emit(Progress(task="rollout", done=done, total=total, unit="answers"))

        return self._sampler.sample(
            [self._prompts[index] for index in chosen],
            sampling,
            group_size=section.num_generations,
            shared_prefix=self._shared_prefix,
            on_done=count,
        )

    def _give_up_or_go_on(self, number: int, num_unscored: int, rewarded: Sequence[Sequence[Rewarded]]) -> None:
        wanted = "no answer" if self._section.loss == "ppo" else "no two answers to one prompt"
        first = next(each.explanation for group in rewarded for each in group if each.total is None)
        message = f"{wanted} of rollout {number} could be scored; the first that could not: {first}"
        if num_unscored > self._section.max_failures:
            raise TrainingError(
                f"{message} ({num_unscored} answers in a row have no score, allowed are {self._section.max_failures})",
                where="recipe.align.max_failures",
                hint="look at logs/rollouts.jsonl, and give such answers a number where that is right",
            )
        self._events.emit(Note(level="warning", message=f"{message}; other prompts are asked in their place"))

    def _usable(
        self, rows: Sequence[Conversation], renderer: Renderer, room: int
    ) -> tuple[list[Conversation], list[Prompt]]:
        kept: list[tuple[Conversation, Prompt]] = []
        for row in rows:
            try:
                prompt = renderer.prompt(row.prompt)
            except DataError as error:
                self._leave_out(row, "refused_by_template", error.message)
                continue
            if len(prompt.input_ids) < room:
                kept.append((row, prompt))
            else:
                detail = f"{len(prompt.input_ids)} tokens, expected less than {room} for room for an answer"
                self._leave_out(row, "overlong", detail)
        if len(kept) < len(rows):
            message = f"{len(rows) - len(kept)} of {len(rows)} prompts stay out: the template refuses them, or they are too long"
            self._events.emit(Note(level="warning", message=message))
        if not kept:
            raise DataError(
                f"no training prompt can be sampled from; the first: {self.dropped[0].detail}",
                where=self.dropped[0].where,
                hint="lower align.max_tokens, raise tokenize.max_length, or look at the rows",
            )
        return [row for row, _ in kept], [prompt for _, prompt in kept]

    def _leave_out(self, row: Conversation, reason: str, detail: str) -> None:
        self.dropped.append(Excluded(reason=reason, detail=detail, where=row.place, conversation=row))

    def _chosen(self, number: int) -> list[int]:
        size, chosen = self._section.prompts_per_rollout, list[int]()
        for place in range(number * size, (number + 1) * size):
            epoch, within = divmod(place, len(self._rows))
            order = np.random.default_rng((self._section.rng_seed, epoch)).permutation(len(self._rows))
            chosen.append(int(order[within]))
        return chosen

    def _reward(self, number: int, chosen: Sequence[int], groups: Sequence[Sequence[Rollout]]) -> list[list[Rewarded]]:
        """Rewards of every answer, and a line of the log for each."""
        self._tidy_log(number)
        attempts = [
            self._attempt(self._rows[index], rollout)
            for index, group in zip(chosen, groups, strict=True)
            for rollout in group
        ]
        flat = iter(self._rewards(attempts))
        rewarded = [[next(flat) for _ in group] for group in groups]
        texts = iter(attempts)
        with RecordLog(self._log) as log:
            for index, group, scores in zip(chosen, groups, rewarded, strict=True):
                for rollout, score in zip(group, scores, strict=True):
                    log.append(
                        RolloutLine(
                            rollout=number,
                            row=self._rows[index].id,
                            answer=next(texts).completion,
                            num_tokens=len(rollout.token_ids),
                            finish_reason=rollout.finish_reason,
                            stop_string=rollout.stop_string,
                            reward=score.total,
                            why=score.explanation or None,
                        )
                    )
        return rewarded

    def _attempt(self, row: Conversation, rollout: Rollout) -> Attempt:
        text = self._renderer.decode(rollout.token_ids)
        if rollout.stop_string is not None:
            text = text[: text.find(rollout.stop_string)]
        return Attempt(row.prompt, text, row.reply, rollout.stop_string)

    def _tidy_log(self, number: int) -> None:
        """What a stopped run had drawn since its last checkpoint is drawn again, and is in the log once."""
        if not self._log_is_tidy and self._log.exists():
            write_records(self._log, [line for line in read_log(self._log, RolloutLine) if line.rollout < number])
        self._log_is_tidy = True

    def _tell(
        self,
        number: int,
        groups: Sequence[Sequence[Rollout]],
        rewarded: Sequence[Sequence[Rewarded]],
        advantages: GroupAdvantages,
    ) -> None:
        totals = [each.total for group in rewarded for each in group if each.total is not None]
        rollouts = [rollout for group in groups for rollout in group]
        values = {"reward": float(np.mean(totals))} if totals else {}
        values |= {
            "answer_tokens": float(np.mean([len(rollout.token_ids) for rollout in rollouts])),
            "cut_off": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
            "unscored": float(advantages.num_unscored),
            "level_groups": float(advantages.num_level),
        }
        if self._section.stop:
            values["stop_string"] = float(np.mean([rollout.stop_string is not None for rollout in rollouts]))
        self._events.emit(Metric(step=number * self._section.rollout_epochs, values=values))


def _totals(rewarded: Sequence[Sequence[Rewarded]]) -> torch.Tensor:
    """(Q, G), NaN = unscored. In fp32: sums that differ by the rounding of fp64 alone are level."""
    totals = [[math.nan if each.total is None else each.total for each in group] for group in rewarded]
    return torch.tensor(totals, dtype=torch.float32)
