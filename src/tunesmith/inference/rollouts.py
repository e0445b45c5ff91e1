"""Answers for reinforcement learning: token ids in, token ids out, with the log-probability each token was drawn with.

Owns groups of answers to one prompt, their randomness and their log-probabilities. Knows no reward and no loss. Text is looked at
to find stop strings alone: what was drawn is never decoded and encoded again, so training sees exactly these ids.

Which distribution: softmax(logits / temperature) over the whole vocabulary, in fp32. Tokens are drawn from it and log-probabilities are
of it, so a training forward that divides its logits by the same temperature has ratio 1 before its first update. Settings
under which that is false (top_p, top_k, min_p, penalties, greedy) are refused: a nucleus gives the drawn token more
probability than the policy has, by another factor at every token, and no later ratio would be right. A stop string changes no
probability: it says when drawing ends, by what was drawn.

A prompt goes through the model once, whatever the size of its group; every row starts at place 0 of its own slot, so there is
no padding on either side and the position of a token is its place. A row that has ended makes room for the next at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tunesmith.errors import EngineError, RecipeError
from tunesmith.inference.drawing import draw_tokens, generator_for
from tunesmith.inference.forward import (
    Prefill,
    check_attention,
    context_length_of,
    decode_step,
    refuse_infinite,
)
from tunesmith.inference.kv_slots import Layers, SlotCache, StepMask
from tunesmith.protocols import Prompt
from tunesmith.types import SamplingParams


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. token_ids and log_probs have the same length, at least 1; a stop token is the last of them, or the
    token that completes a stop string.

    log_probs: nats, of softmax(logits / temperature). finish_reason "length": cut off at max_tokens or the end of the context.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    stop_string: str | None = None  # which ended it, None for a stop token; of several the first in the text


@dataclass
class _Row:
    """An answer that is being drawn."""

    place: tuple[int, int]  # (prompt, answer)
    stop_ids: frozenset[int]
    generator: torch.Generator
    limit: int
    length: int  # places of its slot that are filled
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stop_string: str | None = None


_Find = Callable[[Sequence[int]], str | None]
"""The stop string that the text of these ids holds."""


class RolloutSampler:
    """Draws groups of answers from a model in memory, which it neither changes nor owns.

    batch_size: answers drawn side by side. Each answer has its own random numbers, from the seed, its prompt and its number
    in the group: what else is in the batch, and in which order, changes it by rounding only. decode: ids to the text in which stop
    strings are looked for; without it there can be none.
    """

    def __init__(self, model: Any, *, batch_size: int, decode: Callable[[Sequence[int]], str] | None = None) -> None:
        self._model = model
        self._batch_size = batch_size
        self._decode = decode
        self._context_length = context_length_of(model)
        self._mask = StepMask(model.config, model.dtype)

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        group_size: int,
        shared_prefix: Sequence[int],
        on_done: Callable[[int, int, Rollout], None] | None = None,
    ) -> list[list[Rollout]]:
        """group_size answers to each prompt, in the order of the prompts; on_done(prompt, answer, rollout) as each ends.

        A prompt that comes again draws on: its answers have the numbers after those of its first group. shared_prefix: ids
        that prompts start with, computed once. Raises RecipeError for settings under which log-probabilities would not be
        those of the policy, EngineError for a prompt that leaves no room, or where the model computes NaN.
        """
        check_sampling(sampling)
        find = self._finder(sampling.stop)
        self._refuse_long(prompts)
        done: dict[tuple[int, int], Rollout] = {}

        def finish(row: _Row, reason: Literal["stop", "length"]) -> None:
            rollout = Rollout(tuple(row.token_ids), tuple(row.log_probs), reason, row.stop_string)
            done[row.place] = rollout
            if on_done is not None:
                on_done(*row.place, rollout)

        with sampling_mode(self._model):
            waiting = self._waiting(prompts, sampling, group_size, shared_prefix)
            self._run(waiting, sampling.temperature, find, finish)
        return [[done[index, answer] for answer in range(group_size)] for index in range(len(prompts))]

    def _waiting(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, group_size: int, shared_prefix: Sequence[int]
    ) -> Generator[tuple[_Row, Layers, torch.Tensor]]:
        """Every answer to be drawn with its prompt's keys and values and the logits (1, V) after it; long prompts last."""
        prefill = Prefill(self._model, shared_prefix)
        seen: Counter[tuple[int, ...]] = Counter()
        first: dict[int, int] = {}
        for index, prompt in enumerate(prompts):
            first[index] = seen[prompt.input_ids] * group_size
            seen[prompt.input_ids] += 1
        for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i].input_ids), i)):
            prompt = prompts[index]
            layers, logits = prefill.extend(prompt.input_ids)
            length = len(prompt.input_ids)
            limit = min(sampling.max_tokens, self._context_length - length)
            for answer in range(group_size):
                generator = generator_for(sampling.rng_seed, prompt.input_ids, first[index] + answer)
                row = _Row((index, answer), frozenset(prompt.stop_ids), generator, limit, length)
                yield row, layers, logits

    def _run(
        self,
        waiting: Generator[tuple[_Row, Layers, torch.Tensor]],
        temperature: float,
        find: _Find,
        finish: Callable[[_Row, Literal["stop", "length"]], None],
    ) -> None:
        running: list[_Row] = []  # row i lives in slot i
        slots: SlotCache | None = None
        exhausted = False
        while running or not exhausted:
            while not exhausted and len(running) < self._batch_size:
                coming = next(waiting, None)
                if coming is None:
                    exhausted = True
                    break
                row, layers, logits = coming
                slots = slots or SlotCache(layers, self._batch_size)
                reason = _draw(logits, [row], temperature, find)[0]
                if reason is None:
                    slots.fill(len(running), layers)
                    running.append(row)
                else:
                    finish(row, reason)
            if not running or slots is None:
                continue
            tokens, lengths = [row.token_ids[-1] for row in running], [row.length for row in running]
            logits = decode_step(self._model, self._mask, slots, tokens, lengths)
            for row in running:
                row.length += 1
            reasons = _draw(logits, running, temperature, find)
            # From the last slot down, so that a row moved into a freed slot has had its token already.
            for slot in range(len(running) - 1, -1, -1):
                reason = reasons[slot]
                if reason is None:
                    continue
                finish(running[slot], reason)
                last = running.pop()
                if slot < len(running):
                    running[slot] = last
                    slots.move(len(running), slot)

    def _finder(self, stops: Sequence[str]) -> _Find:
        if not stops:
            return lambda _ids: None
        decode = self._decode
        if decode is None:
            raise EngineError("stop strings are looked for in text, and this sampler has no tokenizer to decode with")

        def find(ids: Sequence[int]) -> str | None:
            text = decode(ids)
            places = {stop: text.find(stop) for stop in stops}
            return min((stop for stop in stops if places[stop] >= 0), key=lambda stop: places[stop], default=None)

        return find

    def _refuse_long(self, prompts: Sequence[Prompt]) -> None:
        for index, prompt in enumerate(prompts):
            if not prompt.input_ids:
                raise EngineError(f"prompt {index} is empty")
            if len(prompt.input_ids) >= self._context_length:
                raise EngineError(
                    f"prompt {index} has {len(prompt.input_ids)} tokens and the model's context {self._context_length}: "
                    "there is no room for an answer",
                    hint="leave out longer prompts",
                )


def check_sampling(sampling: SamplingParams) -> None:
    """RecipeError for settings under which the log-probability of a drawn token is not the policy's."""
    refused = {
        "top_p": sampling.top_p < 1,
        "top_k": sampling.top_k > 0,
        "min_p": sampling.min_p > 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "presence_penalty": sampling.presence_penalty != 0,
        "json_schema": sampling.json_schema is not None,
    }
    for name, asked in refused.items():
        if asked:
            raise RecipeError(
                f"rollouts are drawn from the policy itself, and `{name}` would draw from another distribution",
                where=f"recipe.align.{name}",
                hint="leave it out: use the temperature, and a reward, to shape answers",
            )
    if sampling.temperature <= 0:
        raise RecipeError(
            "rollouts at temperature 0 are all alike, and their log-probabilities are 0",
            where="recipe.align.temperature",
            hint="take 1",
        )


@contextmanager
def sampling_mode(model: Any) -> Generator[None]:
    """Inside, the model is in eval mode, attends as decoding needs and computes no gradients; outside it is as it was."""
    before, training = model.config._attn_implementation or "sdpa", model.training
    switch = before not in ("sdpa", "eager")
    model.eval()
    if switch:
        model.set_attn_implementation("sdpa")
    try:
        check_attention(model)
        # Not inference_mode: a table the model grows on the way (dynamic rotary frequencies) must still serve training.
        with torch.no_grad():
            yield
    finally:
        if switch:
            model.set_attn_implementation(before)
        model.train(training)


def _draw(
    logits: torch.Tensor, rows: Sequence[_Row], temperature: float, find: _Find
) -> list[Literal["stop", "length"] | None]:
    """Gives each row its next token, for logits (R, V); why it ends with that, None while it goes on."""
    refuse_infinite(logits)
    tokens, log_probs = draw_tokens(logits, [row.generator for row in rows], temperature)
    reasons: list[Literal["stop", "length"] | None] = []
    for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
        row.token_ids.append(token)
        row.log_probs.append(log_prob)
        if token in row.stop_ids:
            reasons.append("stop")
            continue
        row.stop_string = find(row.token_ids)
        ended = len(row.token_ids) >= row.limit
        reasons.append("stop" if row.stop_string is not None else "length" if ended else None)
    return reasons
