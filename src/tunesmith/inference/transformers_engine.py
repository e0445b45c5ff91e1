"""Answers many prompts with a transformers model, offline, with exact weights.

Owns the decoding loop. Knows no chat template, no recipe and no metric.

Each prompt goes through the model alone (after the part all prompts share, which goes through once); then up to
`batch_size` rows decode side by side, and a row that has ended makes room for the next prompt at once. A row's answer
does not depend on its neighbours beyond rounding. The same prompts in one call give the same bits again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.errors import EngineError
from tunesmith.inference.drawing import Draw
from tunesmith.inference.forward import Prefill, check_attention, context_length_of, decode_step, refuse_infinite
from tunesmith.inference.kv_slots import SlotCache, StepMask
from tunesmith.protocols import Prompt
from tunesmith.types import Completion, FinishReason, SamplingParams, Usage


@dataclass
class _Row:
    """A request that is being answered."""

    index: int
    prompt: Prompt
    draw: Draw
    limit: int  # tokens it may make, a stop token included
    length: int = 0  # places of its slot that are filled
    num_made: int = 0
    ids: list[int] = field(default_factory=list)  # what it made, without the stop token

    def complete(self, text: str, reason: FinishReason) -> Completion:
        usage = Usage(prompt_tokens=len(self.prompt.input_ids), completion_tokens=self.num_made)
        return Completion(text=text, finish_reason=reason, usage=usage, token_ids=self.ids)


class TransformersEngine:
    """A BatchEngine on a model that is already loaded. It neither changes the model nor owns it.

    decode: token ids to text. batch_size: rows that decode side by side. shared_prefix: ids that prompts start with
    (a system prompt); they go through the model once instead of once per prompt.
    """

    def __init__(
        self, model: Any, *, decode: Callable[[Sequence[int]], str], batch_size: int, shared_prefix: Sequence[int] = ()
    ) -> None:
        check_attention(model)
        self._model = model
        self._decode = decode
        self._batch_size = batch_size
        self._context_length = context_length_of(model)
        self._mask = StepMask(model.config, model.dtype)
        self._prefix = Prefill(model, shared_prefix)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answers in the order of the prompts; on_done(index, answer) as each one ends.

        An answer ends at a stop id or stop string ("stop"; neither is part of the text) or at max_tokens or the end of
        the model's context ("length"). A prompt that leaves no room is answered by "error". Raises EngineError where
        a request asks for what this engine cannot do, or where the model computes NaN.
        """
        if sampling.json_schema is not None:
            raise EngineError(
                "the transformers engine cannot hold an answer to a JSON schema",
                where="json_schema",
                hint="leave it out here; the served model can do it",
            )
        done: dict[int, Completion] = {}

        def finish(index: int, completion: Completion) -> None:
            done[index] = completion
            if on_done is not None:
                on_done(index, completion)

        waiting: deque[_Row] = deque()
        for index in sorted(range(len(prompts)), key=lambda i: (len(prompts[i].input_ids), i)):
            prompt = prompts[index]
            refusal = self._refusal(prompt)
            if refusal is None:
                limit = min(sampling.max_tokens, self._context_length - len(prompt.input_ids))
                waiting.append(_Row(index, prompt, Draw(sampling, prompt.input_ids), limit))
            else:
                finish(index, Completion(text="", finish_reason="error", error=refusal))
        self._run(waiting, sampling, finish)
        return [done[index] for index in range(len(prompts))]

    def close(self) -> None:
        """Forget the shared prefix. The model belongs to the caller."""
        self._prefix = Prefill(self._model, ())

    def _run(self, waiting: deque[_Row], sampling: SamplingParams, finish: Callable[[int, Completion], None]) -> None:
        running: list[_Row] = []  # row i lives in slot i
        slots: SlotCache | None = None
        while waiting or running:
            while waiting and len(running) < self._batch_size:
                row = waiting.popleft()
                layers, logits = self._prefix.extend(row.prompt.input_ids)
                slots = slots or SlotCache(layers, self._batch_size)
                slots.fill(len(running), layers)
                row.length = len(row.prompt.input_ids)
                completion = self._take(row, _pick(logits, [row], sampling)[0], sampling)
                if completion is None:
                    running.append(row)
                else:
                    finish(row.index, completion)
            if not running or slots is None:
                continue
            tokens = _pick(self._step(running, slots), running, sampling)
            # From the last slot down, so that a row moved into a freed slot has had its token already.
            for slot in range(len(running) - 1, -1, -1):
                completion = self._take(running[slot], tokens[slot], sampling)
                if completion is None:
                    continue
                finish(running[slot].index, completion)
                last = running.pop()
                if slot < len(running):
                    running[slot] = last
                    slots.move(len(running), slot)

    def _step(self, running: list[_Row], slots: SlotCache) -> torch.Tensor:
        """Logits (R, V) after the last token of every running row."""
        tokens, lengths = [row.ids[-1] for row in running], [row.length for row in running]
        logits = decode_step(self._model, self._mask, slots, tokens, lengths)
        for row in running:
            row.length += 1
        return logits

    def _take(self, row: _Row, token: int, sampling: SamplingParams) -> Completion | None:
        """Give a row its next token; the answer where it ends with that, None while it goes on."""
        row.num_made += 1
        if token in row.prompt.stop_ids:
            return row.complete(self._decode(row.ids), "stop")
        row.ids.append(token)
        if sampling.stop:
            text = self._decode(row.ids)
            places = [place for stop in sampling.stop if stop and (place := text.find(stop)) >= 0]
            if places:
                return row.complete(text[: min(places)], "stop")
        if row.num_made >= row.limit:
            return row.complete(self._decode(row.ids), "length")
        return None

    def _refusal(self, prompt: Prompt) -> str | None:
        if not prompt.input_ids:
            return "the prompt is empty"
        if len(prompt.input_ids) >= self._context_length:
            return (
                f"the prompt has {len(prompt.input_ids)} tokens and the model's context {self._context_length}: "
                "there is no room for an answer"
            )
        return None


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The ids that all sequences start with; () for none."""
    if not sequences:
        return ()
    first, last = min(sequences), max(sequences)  # the prefix of the two farthest apart is everybody's
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _pick(logits: torch.Tensor, rows: Sequence[_Row], sampling: SamplingParams) -> list[int]:
    """The next token of each row, for logits (R, V)."""
    refuse_infinite(logits)
    if not (sampling.temperature or sampling.frequency_penalty or sampling.presence_penalty):
        return logits.max(dim=-1).indices.tolist()
    return [row.draw.next(values.float()) for row, values in zip(rows, logits, strict=True)]
